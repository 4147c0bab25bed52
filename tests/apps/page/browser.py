"""A headless Chromium for the tests, or the reason why there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
)
"""Without them Chromium asks its makers for news, and a person for the camera."""

PATIENCE = 100_000
"""Milliseconds until something is taken to have gone wrong; far more than it needs."""


def program() -> str:
    """The path of a Chromium; skips the test where there is none."""
    named = [os.environ.get("CHROMIUM"), *map(shutil.which, NAMES)]
    found = next((path for path in named if path), None)
    if found is None:
        pytest.skip(f"no Chromium: none of {', '.join(NAMES)} is installed, CHROMIUM names none")
    return found


@contextmanager
def chromium(log: Path | None = None) -> Iterator[Any]:
    """A browser of Playwright; `log` gets everything that its network stack does, as JSON."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = program()
    args = [*FLAGS, *([f"--log-net-log={log}"] if log else [])]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=args)
        try:
            yield browser
        finally:
            browser.close()


class Visitor:
    """Somebody at the page, in a browser window of their own."""

    def __init__(
        self,
        browser: Any,
        url: str,
        *,
        width: int = 1280,
        height: int = 900,
        scheme: str = "light",
    ) -> None:
        size = {"width": width, "height": height}
        self.context = browser.new_context(viewport=size, color_scheme=scheme)
        self.context.set_default_timeout(PATIENCE)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page = self.context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(url)
        self.page.wait_for_selector("#question textarea")

    def close(self) -> None:
        self.context.close()

    def choose(self, file: Path) -> None:
        """Attach a file to the next question."""
        self.page.set_input_files("#question input[type=file]", str(file))
        self.page.get_by_label("Remove file").first.wait_for()

    def add(self, file: Path) -> None:
        """Hand in a file without a question."""
        self.choose(file)
        self.page.press("#question textarea", "Enter")

    def ask(self, question: str) -> None:
        """Type a question and press Enter."""
        self.page.fill("#question textarea", question)
        self.page.press("#question textarea", "Enter")

    def answered(self, number: int) -> list[str]:
        """Wait for so many answers with their timings; the texts of all."""
        self.page.wait_for_function(
            f"document.querySelectorAll('#chat details.report').length === {number}"
        )
        return [text.strip() for text in self.page.locator("#chat .bot").all_inner_texts()]

    def asked(self) -> list[str]:
        return [text.strip() for text in self.page.locator("#chat .user").all_inner_texts()]

    def set(self, **options: float) -> None:
        """Type into the number boxes of sliders, by a word of their label."""
        self.page.click("#drawer .toggle-button")
        for label, value in options.items():
            box = self.page.get_by_label(label.replace("_", " ")).first
            box.fill(str(value))
            box.press("Tab")
        self.page.click("#drawer .toggle-button")

    def wait_for_text(self, selector: str, text: str) -> None:
        self.page.locator(selector).filter(has_text=text).first.wait_for()

    def press(self, name: str) -> None:
        """Press one of the buttons under the last answer."""
        self.page.locator("#chat").get_by_role("button", name=name, exact=True).last.click()
