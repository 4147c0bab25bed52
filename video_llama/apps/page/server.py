"""The page's server: Gradio without its calls to the outside, behind the guard."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_llama.apps.page.options import ServerOptions
from video_llama.apps.page.uploads import Uploads
from video_llama.apps.page.visitors import Conversations
from video_llama.chat.engine import Chat
from video_llama.types import ConfigError

if TYPE_CHECKING:
    import gradio as gr

    from video_llama.apps.page.guard import AllowedHosts

SECONDS_BETWEEN_SWEEPS = 5.0
SECONDS_A_FILE_IS_KEPT = 86_400

_QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_SSR_MODE": "False",
    "GRADIO_MCP_SERVER": "False",
    "GRADIO_RUN_HISTORY": "False",
}
"""Read by Gradio when it is imported: without them it reports to its makers that it runs."""


@dataclass
class Page:
    """A page that is being served.

    Attributes:
        url: address on this machine.
        share_url: public address; None: there is none.
        conversations: of its visitors.
        folder: of uploads; deleted when the page is closed.
    """

    url: str
    share_url: str | None
    conversations: Conversations
    folder: Path
    blocks: gr.Blocks = field(repr=False)
    _closing: threading.Event = field(default_factory=threading.Event, repr=False)

    def wait(self) -> None:
        """Serve until `close` is called or Ctrl-C is pressed."""
        self._closing.wait()

    def close(self) -> None:
        """Stop serving, and free conversations and uploads."""
        # First the flag: the sweeper must not free what is being closed.
        self._closing.set()
        self.blocks.close(verbose=False)
        self.conversations.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def sweep(self) -> None:
        """Free stale conversations now and then; the work of a thread."""
        while not self._closing.wait(SECONDS_BETWEEN_SWEEPS):
            self.conversations.free_stale()


def prepare(options: ServerOptions) -> Path:
    """Set Gradio's environment, which it reads when it is imported, and make its upload folder.

    Returns:
        The folder, which only this user may enter.

    Raises:
        ConfigError: the port is taken.
    """
    if options.port is not None:
        _check_free(options.server_name, options.port)
    folder = Path(tempfile.mkdtemp(prefix="video_llama_page_")).resolve()
    os.environ.update(_QUIET)
    os.environ.update(GRADIO_TEMP_DIR=str(folder), GRADIO_EXAMPLES_CACHE=str(folder / "cache"))
    return folder


def serve(chat: Chat, options: ServerOptions, folder: Path, *, grace: float = 60.0) -> Page:
    """Serve the page in threads of its own.

    Args:
        chat: the engine.
        options: where and to whom.
        folder: of `prepare`.
        grace: seconds for which a page may lose its connection.

    Raises:
        ConfigError: no port is free, or the public address cannot be had.
    """
    from video_llama.apps.page.guard import AllowedHosts

    uploads = Uploads(folder, options)
    conversations = Conversations(chat, discard=uploads.discard, grace=grace)
    hosts = AllowedHosts(options.server_name, options.allow_host)
    blocks = _blocks(chat, conversations, uploads, options)
    launch_options = _launch_options(hosts, conversations, uploads, options)
    try:
        _, url, share_url = blocks.launch(**launch_options)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"the page cannot be served: {error}") from error
    if share_url:
        # The tunnel hands on the Host header of the public address, which is known only now.
        hosts.add(share_url)
    page = Page(url, share_url, conversations, folder, blocks)
    # A daemon: it must not keep the process alive.
    threading.Thread(target=page.sweep, name="page-sweep", daemon=True).start()
    return page


def _blocks(
    chat: Chat, conversations: Conversations, uploads: Uploads, options: ServerOptions
) -> gr.Blocks:
    import gradio as gr

    from video_llama.apps.banner import model_line
    from video_llama.apps.page.api import Api
    from video_llama.apps.page.examples import EXAMPLES, write_examples, write_icons
    from video_llama.apps.page.handlers import Handlers
    from video_llama.apps.page.layout import TITLE, Events, build

    (uploads.folder / "examples").mkdir()
    files = write_examples(uploads.folder / "examples")
    icons = write_icons(uploads.folder / "examples")
    examples = {e: files[e.file] for e in EXAMPLES if chat.hears or e.slot != "sound"}
    cards = {example: (path, icons.get(example.file)) for example, path in examples.items()}
    blocks: gr.Blocks
    with gr.Blocks(title=TITLE, delete_cache=(3600, SECONDS_A_FILE_IS_KEPT)) as blocks:
        notices = [model_line(chat.model), *chat.notices]
        components = build(hears=chat.hears, notices=notices, examples=cards)
        handlers = Handlers(conversations, uploads)
        Events(components, handlers, examples, options.concurrency).connect(blocks)
        Api(conversations, uploads, options.concurrency).connect()
        # With an unload event pages keep a connection, by which the guard knows that they are open.
        blocks.unload(_nothing)
    blocks.queue(max_size=options.max_queue, api_open=False)
    return blocks


def _nothing() -> None:
    """Do nothing: Gradio calls it when a page has gone."""


def _launch_options(
    hosts: AllowedHosts, conversations: Conversations, uploads: Uploads, options: ServerOptions
) -> dict[str, Any]:
    from video_llama.apps.page.guard import Guard
    from video_llama.apps.page.layout import SCRIPT, STYLE

    guard_options = {
        "hosts": hosts,
        "holds": uploads.holds,
        "refusal": uploads.refusal,
        "arrive": conversations.arrive,
        "leave": conversations.leave,
    }
    return {
        "server_name": options.server_name,
        "server_port": options.port,
        "share": options.share,
        "auth": options.auth,
        "max_file_size": int(options.max_file_mb * 1e6),
        "max_threads": max(40, 4 * options.concurrency),
        "app_kwargs": {"middleware": [(Guard, (), guard_options)]},
        "theme": _theme(),
        "css_paths": STYLE,
        "js": SCRIPT.read_text("utf-8"),
        "footer_links": ["api"],
        "prevent_thread_lock": True,
        "quiet": True,
        "show_error": True,
        # Off whatever the environment says, which might have changed since `prepare`.
        "enable_monitoring": False,
        "run_history": False,
        "ssr_mode": False,
        "mcp_server": False,
        "pwa": False,
    }


def _theme() -> Any:
    """Return a theme with fonts of the visitor's own machine, and small print that can be read."""
    from gradio.themes import Default

    sans, mono = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")
    theme = Default(font=sans, font_mono=mono, primary_hue="indigo", secondary_hue="indigo")
    return theme.set(
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )


def _check_free(server_name: str, port: int) -> None:
    """Find out that a port is taken before the model is loaded."""
    # The model takes seconds to minutes to load: no good time to find the port taken.
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            server_name.strip("[]"), port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(
            f"{server_name}:{port} cannot be used ({error.strerror or error}); choose another "
            "--port or --server-name"
        ) from error
