"""Take pictures of the chat page in a real browser: `python -m studies.page_pictures`.

Writes docs/page.webp, in which the page is asked about a clip that it sees and hears; with
`--stills DIR` also one picture of each moment, at three widths, light and dark.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from tests.apps.page.browser import Visitor, chromium
from video_llama.apps.page.options import ServerOptions
from video_llama.apps.page.server import prepare, serve
from video_llama.chat.engine import Chat
from video_llama.common.io import default_config_path
from video_llama.config.build import build_model
from video_llama.config.load import load_config

ROOT = Path(__file__).resolve().parent.parent
CLIP = ROOT / "examples" / "bells_and_a_drum.mp4"
QUESTIONS = ("What do you see?", "What do you hear?")
MOVING = ROOT / "docs" / "page.webp"
MAX_BYTES = 3_000_000
WIDTHS = (1280, 768, 390)
Frame = tuple[Image.Image, int]
"""A picture and how long it is shown, milliseconds."""


@contextmanager
def page() -> Iterator[tuple[Any, str]]:
    """Serve the page with the tiny model, and open a browser."""
    chat = Chat(build_model(load_config(default_config_path(), ["run.device=cpu"])))
    options = ServerOptions()
    served = serve(chat, options, prepare(options))
    try:
        with chromium() as browser:
            yield browser, served.url
    finally:
        served.close()


def picture(visitor: Visitor) -> Image.Image:
    """Take what the window shows now."""
    return Image.open(io.BytesIO(visitor.page.screenshot())).convert("RGB")


def talk(visitor: Visitor) -> Iterator[tuple[str, Image.Image]]:
    """Talk about the clip; yield a name and a picture of each moment."""
    visitor.set(Longest_answer=12, Temperature=0)
    yield "empty", picture(visitor)
    visitor.add(CLIP)
    visitor.page.wait_for_selector("#seen img")
    yield "with_media", picture(visitor)
    for number, question in enumerate(QUESTIONS, start=1):
        visitor.page.fill("#question textarea", question)
        yield f"asking_{number}", picture(visitor)
        visitor.page.press("#question textarea", "Enter")
        visitor.answered(number)
        visitor.page.wait_for_timeout(300)
        yield f"answered_{number}", picture(visitor)


def write_moving(browser: Any, url: str) -> None:
    """Write the moving picture.

    Raises:
        ValueError: it is too large for a README.
    """
    visitor = Visitor(browser, url, width=1100)
    frames = [image for _, image in talk(visitor)]
    visitor.close()
    first, *rest = frames
    first.save(
        MOVING,
        save_all=True,
        append_images=rest,
        duration=[1200] + [1800] * len(rest),
        loop=0,
        quality=70,
        method=6,
    )
    if MOVING.stat().st_size > MAX_BYTES:
        raise ValueError(f"{MOVING} has {MOVING.stat().st_size:,} bytes, at most {MAX_BYTES:,}")


def write_stills(browser: Any, url: str, folder: Path) -> None:
    """Write a picture of each moment, width and scheme."""
    folder.mkdir(parents=True, exist_ok=True)
    for width in WIDTHS:
        for scheme in ("light", "dark"):
            visitor = Visitor(browser, url, width=width, scheme=scheme)
            for name, image in talk(visitor):
                image.save(folder / f"{width}_{scheme}_{name}.png")
            visitor.close()


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--stills", type=Path, metavar="DIR", help="also single pictures")
    args = parser.parse_args()
    with page() as (browser, url):
        write_moving(browser, url)
        if args.stills:
            write_stills(browser, url, args.stills)


if __name__ == "__main__":
    main()
