"""`video-llama demo` and `demo_audiovideo.py`: the chat page, served until Ctrl-C.

Torch and Gradio are imported, and the model loaded, once everything else has been checked.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import signal
import sys
import time
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from video_llama.apps.doctor import check_paths
from video_llama.apps.page.options import ServerOptions, parse_auth
from video_llama.common.io import default_config_path
from video_llama.config.load import load_config
from video_llama.config.schema import Config

if TYPE_CHECKING:
    from video_llama.apps.page.server import Page

DEFAULTS = ServerOptions()


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command `demo`, but for the options of the model."""
    demo: argparse.ArgumentParser = subparsers.add_parser(
        "demo",
        help="a conversation in the browser",
        description="Serve the chat page. It stays on this machine unless --server-name or "
        "--share says otherwise. Also: python demo_audiovideo.py",
    )
    demo.add_argument(
        "--model_type",
        "--model-type",
        choices=["vicuna", "llama_v2"],
        help="format of the conversation (default: that of the configuration)",
    )
    demo.add_argument(
        "--gpu-id", type=int, metavar="N", help="which GPU (default: run.device of the YAML)"
    )
    page = demo.add_argument_group("page")
    page.add_argument(
        "--server-name",
        default=DEFAULTS.server_name,
        metavar="ADDRESS",
        help="where to listen (default %(default)s: this machine only; 0.0.0.0: the network)",
    )
    page.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a further name by which browsers open the page, such as that of a proxy; may be "
        "repeated (loopback names, --server-name and the --share address are allowed anyway)",
    )
    page.add_argument(
        "--port", type=int, metavar="N", help="TCP port (default: the first free one from 7860)"
    )
    page.add_argument(
        "--share",
        action="store_true",
        help="also a public address, through a tunnel of Gradio's makers",
    )
    page.add_argument("--auth", metavar="USER:PASSWORD", help="visitors must log in")
    limits = {
        "max_file_mb": "largest file, MB",
        "max_upload_gb": "most that one address may upload in a day, GB",
        "max_minutes": "longest clip or sound, minutes",
        "max_queue": "most visitors who wait for their turn",
        "concurrency": "most visitors who are served at the same time",
    }
    # Defaults and types are those of ServerOptions, which also checks the values.
    for name, text in limits.items():
        value = getattr(DEFAULTS, name)
        flag = "--" + name.replace("_", "-")
        help_text = f"{text} (default {value:g})"
        page.add_argument(flag, type=type(value), default=value, metavar="N", help=help_text)
    demo.set_defaults(handler="video_llama.apps.cli.demo:demo")
    return demo


def demo(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C."""
    start = time.perf_counter()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C: tidily
    # What is wrong with the options is said before seconds are spent on the model.
    options = _server_options(args)
    cfg = load_config(args.cfg_path or default_config_path(), _overrides(args))
    check_paths(cfg)
    page = _serve(cfg, options)
    seconds = time.perf_counter() - start
    print(f"The page is at {page.url} (ready after {seconds:.1f} s; Ctrl-C ends it)", flush=True)
    if page.share_url:
        print(f"and, for everybody who knows the address, at {page.share_url}", flush=True)
        if options.auth is None:
            print("note: anybody may use it; --auth USER:PASSWORD asks for a login", flush=True)
    try:
        page.wait()
    except KeyboardInterrupt:
        print("\nclosing", file=sys.stderr)
    finally:
        page.close()
    return 0


def _serve(cfg: Config, options: ServerOptions) -> Page:
    from video_llama.apps.page.server import prepare, serve

    # Before Gradio is imported, which reads its environment only then.
    folder = prepare(options)
    try:
        from video_llama.chat.engine import Chat
        from video_llama.config.build import build_model
        from video_llama.processors.worker import start_decoding

        start_decoding()  # while the model is loaded
        # Gradio asks its own server whether it runs, which httpx would log.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        return serve(Chat(build_model(cfg)), options, folder)
    except BaseException:  # also Ctrl-C while the model is loaded
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _server_options(args: argparse.Namespace) -> ServerOptions:
    given = {field.name: getattr(args, field.name) for field in fields(ServerOptions)}
    given["auth"] = parse_auth(args.auth) if args.auth else None
    given["allow_host"] = tuple(args.allow_host)
    return ServerOptions(**given)


def _overrides(args: argparse.Namespace) -> list[str]:
    """Return the overrides of the configuration, those of the user last, so that they win."""
    overrides = []
    if args.model_type:
        overrides.append(f"model.template={args.model_type}")
    if args.gpu_id is not None:
        overrides.append(f"run.device={_device(args.gpu_id)}")
    return [*overrides, *args.options]


def _device(gpu: int) -> str:
    """Return the device of `--gpu-id`."""
    import torch

    if torch.cuda.is_available():
        return f"cuda:{gpu}"
    # The original's commands name a GPU: they run without one, too.
    print("note: there is no GPU here, the page runs on the CPU", file=sys.stderr)
    return "auto"
