"""What a browser does for the page, by the browser's own log of its network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.apps.page.browser import Visitor, chromium
from tests.apps.page.served import served
from tests.tiny_chat import media_files

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_the_page_asks_for_nothing_from_elsewhere(tmp_path: Path) -> None:
    with chromium(tmp_path / "log.json") as browser, served() as page:
        visitor = Visitor(browser, page.url)
        visitor.set(Longest_answer=12)
        visitor.choose(media_files()["talkie"])
        visitor.ask('<img src="http://192.0.2.1/x.png"> ![](http://192.0.2.1/y.png)')
        visitor.answered(1)
        visitor.close()
    log = json.loads((tmp_path / "log.json").read_text())
    kinds = {number: name for name, number in log["constants"]["logEventTypes"].items()}
    events = [(kinds[event["type"]], event.get("params", {})) for event in log["events"]]
    # What no page began (Chromium looking for updates, say) has no origin and is not ours.
    asked = [
        told["url"]
        for kind, told in events
        if kind == "URL_REQUEST_START_JOB" and told.get("initiator", "").startswith("http")
    ]
    assert len(asked) > 10
    assert [url for url in asked if not url.startswith((page.url, "data:", "blob:"))] == []
    connected = {
        told["address"]
        for kind, told in events
        if kind == "TCP_CONNECT_ATTEMPT"
        if told.get("address")
    }
    assert connected == {page.url.removeprefix("http://").rstrip("/")}
