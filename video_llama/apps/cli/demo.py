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
from typing import TYPE_CHECKING

from video_llama.apps.cli.ask import config_of
from video_llama.apps.page.options import ServerOptions, parse_auth
from video_llama.config.schema import Config

if TYPE_CHECKING:
    from video_llama.apps.page.server import Page


def demo(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C."""
    start = time.perf_counter()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C: tidily
    # What is wrong with the options is said before seconds are spent on the model.
    options = _server_options(args)
    cfg = config_of(args, *_overrides(args))
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
    """Return what `--model_type` and `--gpu-id` change of the configuration."""
    overrides = [f"model.template={args.model_type}"] if args.model_type else []
    if args.gpu_id is not None:
        overrides.append(f"run.device={_device(args.gpu_id)}")
    return overrides


def _device(gpu: int) -> str:
    """Return the device of `--gpu-id`."""
    import torch

    if torch.cuda.is_available():
        return f"cuda:{gpu}"
    # The original's commands name a GPU: they run without one, too.
    print("note: there is no GPU here, the page runs on the CPU", file=sys.stderr)
    return "auto"
