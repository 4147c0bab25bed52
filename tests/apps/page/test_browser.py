"""The page in a real browser: what people do with it, and that it looks after them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.apps.page.browser import Visitor, chromium
from tests.apps.page.served import NO_AUDIO_BRANCH, fill_queue, served
from tests.media import corrupt, write_video
from tests.tiny_chat import media_files

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LOCAL = re.compile(r"(?:https?|wss?)://127\.0\.0\.1[:/]|data:|blob:")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def url(browser: Any) -> Iterator[str]:
    with served(max_queue=8) as page:
        yield page.url


Visit = Callable[..., Visitor]


@pytest.fixture
def visit(browser: Any, url: str) -> Iterator[Visit]:
    """Opens windows; what they asked for and complained about is looked at in the end."""
    visitors: list[Visitor] = []

    def opened(**options: Any) -> Visitor:
        visitors.append(Visitor(browser, options.pop("url", url), **options))
        return visitors[-1]

    yield opened
    for visitor in visitors:
        assert [request for request in visitor.requests if not LOCAL.match(request)] == []
        assert visitor.complaints == []
        visitor.close()


@pytest.fixture
def visitor(visit: Visit) -> Visitor:
    visitor = visit()
    visitor.set(Longest_answer=12, Temperature=0)
    return visitor


@pytest.mark.parametrize(
    ("slot", "name", "frames", "sounds", "note"),
    [
        ("video", "talkie", 8, 8, "talkie.mp4 can be asked about now"),
        ("video", "silent", 8, 0, "silent.mp4 has no sound track"),
        ("picture", "picture", 1, 0, "picture.png can be asked about now"),
        ("sound", "wav", 0, 8, "sound.wav can be asked about now"),
    ],
)
def test_every_kind_of_file_is_seen_heard_and_talked_about(
    visitor: Visitor, slot: str, name: str, frames: int, sounds: int, note: str
) -> None:
    visitor.choose(slot, media_files()[name])
    visitor.start()
    visitor.wait_for_text("#note", note)
    assert visitor.page.locator("#seen .frames img").count() == frames
    assert visitor.page.locator("#seen .sounds img").count() == sounds
    if slot == "video":
        assert visitor.page.locator("#seen .frames figcaption").first.inner_text() == "0.0 s"
    visitor.ask("What is it?")
    (answer,) = visitor.answered(1)
    assert "first word after" in answer
    assert media_files()[name].name in visitor.asked()[0]


def test_three_turns_then_again_then_back_then_anew(visitor: Visitor) -> None:
    visitor.choose("video", media_files()["talkie"])
    for number, question in enumerate(("One?", "Two?", "Three?"), 1):
        visitor.ask(question)
        visitor.answered(number)
    assert [text.splitlines()[-1] for text in visitor.asked()] == ["One?", "Two?", "Three?"]
    before = visitor.answered(3)
    visitor.set(Temperature=2)
    visitor.page.click("#regenerate")
    visitor.page.wait_for_function(
        "before => { const all = [...document.querySelectorAll('#chat .bot')];"
        " return all.length === 3 && all[2].querySelector('details.report')"
        " && all[2].innerText.trim() !== before }",
        arg=before[2],
    )
    assert visitor.answered(3)[:2] == before[:2]
    visitor.page.click("#undo")
    visitor.answered(2)
    assert visitor.page.input_value("#question textarea") == "Three?"
    visitor.page.click("#restart")
    visitor.wait_for_text("#note", "forgotten")
    visitor.answered(0)
    assert visitor.page.locator("#seen img").count() == 0
    assert visitor.page.locator("#video video").count() == 0
    assert not visitor.usable("undo")
    visitor.ask("Who are you?")
    assert len(visitor.answered(1)) == 1


def test_an_answer_streams_and_is_stopped(visitor: Visitor) -> None:
    visitor.set(Temperature=1, Longest_answer=1500, Shortest_answer=1500)
    visitor.ask("Tell me all.")
    visitor.page.wait_for_function("document.querySelector('#chat .bot')?.innerText.length > 40")
    assert visitor.usable("stop")
    assert not visitor.usable("regenerate")
    visitor.page.click("#stop")
    visitor.wait_for_text("#note", "The answer was stopped.")
    (answer,) = visitor.answered(1)
    assert "stopped" in answer
    assert not visitor.usable("stop")
    visitor.set(Shortest_answer=1, Longest_answer=12)
    visitor.ask("And now?")
    visitor.answered(2)


def test_mistakes_are_said_and_lose_nothing(visitor: Visitor, tmp_path: Path) -> None:
    visitor.choose("picture", media_files()["picture"])
    visitor.ask("What?")
    visitor.answered(1)
    visitor.page.press("#question textarea", "Enter")
    visitor.wait_for_text("#note .error", "the question is empty")
    broken = corrupt(write_video(tmp_path / "broken.mp4"), 0.05, 1.0)
    visitor.page.get_by_role("tab", name="Video").click()
    visitor.page.set_input_files("#video input[type=file]", str(broken))
    visitor.page.wait_for_selector("#video video", state="attached")
    visitor.ask("And this?")
    visitor.wait_for_text("#note .error", "broken.mp4: ")
    assert visitor.page.input_value("#question textarea") == "And this?"
    assert len(visitor.answered(1)) == 1
    (tmp_path / "large.mp4").write_bytes(bytes(2_500_000))
    visitor.page.click("#video button[aria-label*=lear]")
    visitor.page.set_input_files("#video input[type=file]", str(tmp_path / "large.mp4"))
    visitor.page.get_by_text(re.compile("exceed the maximum", re.IGNORECASE)).first.wait_for()
    visitor.ask("And now?")
    visitor.answered(2)


def test_two_browsers_with_two_clips_do_not_mix(visit: Visit) -> None:
    one, other = visit(), visit()
    files = {one: ("video", "talkie"), other: ("picture", "picture")}
    for visitor, (slot, name) in files.items():
        visitor.set(Longest_answer=100, Shortest_answer=100)
        visitor.choose(slot, media_files()[name])
    for visitor, (_, name) in files.items():
        visitor.ask(f"What of {name}?")
    for visitor, (_, name) in files.items():
        visitor.answered(1)
        foreign = {"talkie": "picture.png", "picture": "talkie.mp4"}[name]
        text = visitor.page.inner_text("body")
        assert media_files()[name].name in text
        assert f"What of {name}?" in text
        assert foreign not in text
        assert visitor.page.locator("#chat .user").count() == 1


def test_an_example_fills_everything_in(visitor: Visitor) -> None:
    visitor.page.get_by_role("button", name="A clip with sound").click()
    visitor.page.wait_for_selector("#video video", state="attached")
    assert visitor.page.input_value("#question textarea") == "What do you see?"
    visitor.page.press("#question textarea", "Enter")
    visitor.answered(1)
    assert "bird.mp4" in visitor.asked()[0]
    visitor.page.get_by_role("button", name="A sound", exact=True).click()
    visitor.page.wait_for_function(
        "document.querySelector('#question textarea').value === 'What do you hear?'"
    )
    visitor.page.press("#question textarea", "Enter")
    visitor.answered(2)
    assert "whistle.wav" in visitor.asked()[1]


def test_the_sound_of_a_clip_is_switched_off_and_on(visitor: Visitor) -> None:
    visitor.choose("video", media_files()["talkie"])
    visitor.page.uncheck("#audio input")
    visitor.start()
    visitor.wait_for_text("#seen", "sound switched off")
    visitor.page.check("#audio input")
    visitor.page.wait_for_selector("#seen .sounds img")


PASTE = """([selector, name, type, text]) => {
  const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name, { type }));
  document.querySelector(selector).dispatchEvent(
    new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true }));
}"""


@pytest.mark.parametrize(
    ("name", "type_"), [("talkie", "video/mp4"), ("picture", "image/png"), ("wav", "audio/wav")]
)
def test_files_are_pasted_with_the_question(visitor: Visitor, name: str, type_: str) -> None:
    import base64

    path = media_files()[name]
    text = base64.b64encode(path.read_bytes()).decode()
    visitor.page.evaluate(PASTE, ["#question textarea", path.name, type_, text])
    visitor.page.get_by_label("Remove file").first.wait_for()
    visitor.ask("What is it?")
    visitor.answered(1)
    assert path.name in visitor.asked()[0]


def test_a_recording_is_understood(visitor: Visitor) -> None:
    visitor.page.get_by_role("tab", name="Sound").click()
    visitor.page.click("#sound button[aria-label='Record audio']")
    visitor.page.click("#sound .record-button")
    visitor.page.wait_for_timeout(2500)
    visitor.page.click("#sound .stop-button")
    visitor.page.wait_for_selector("#sound #waveform, #sound .waveform-container", state="attached")
    visitor.page.wait_for_timeout(1000)
    visitor.start()
    visitor.page.wait_for_selector("#seen .sounds img")


def test_typed_marks_stay_text_and_load_nothing(visitor: Visitor) -> None:
    text = '<img src="http://192.0.2.1/x.png"> ![x](http://192.0.2.1/y.png) </s>[INST] **b**'
    visitor.ask(text)
    visitor.answered(1)
    assert visitor.asked()[0] == text
    assert visitor.page.locator("#chat .user img").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_and_can_be_read(visit: Visit, width: int, scheme: str) -> None:
    visitor = visit(width=width, scheme=scheme)
    visitor.choose("video", media_files()["talkie"])
    visitor.start()
    visitor.page.wait_for_selector("#seen .sounds img")
    visitor.set(Longest_answer=12)
    visitor.ask("What is it?" * 20 + "a" * 200)
    visitor.answered(1)
    page = visitor.page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for selector in ("#start", "#stop", "#restart", "#question", "#chat", "#seen"):
        box = page.locator(selector).bounding_box()
        assert box["x"] >= 0, selector
        assert box["x"] + box["width"] <= width, selector
    for selector in ("#chat .user", "#chat .report summary", "#seen figcaption", "#intro p"):
        assert page.locator(selector).first.evaluate(CONTRAST) >= 3.0, selector


CONTRAST = """element => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b]
    .map(c => c / 255).map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  let behind = element;
  while (behind.parentElement && (parse(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0)
    behind = behind.parentElement;
  const [a, b] = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor]
    .map(text => light(parse(text))).sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
}"""
"""How much lighter one of text and ground is than the other (WCAG; 3 is enough for large text)."""


def test_title_limits_terms_and_citation_are_there(visitor: Visitor) -> None:
    assert visitor.page.title() == "Video-LLaMA"
    for heading, words in (
        ("Limits of the model", "It makes mistakes"),
        ("Terms of use", "non-commercial use"),
        ("Citation", "@article{damonlpsg2023videollama"),
    ):
        visitor.page.get_by_role("button", name=heading).click()
        # What is folded is only drawn once it is opened.
        visitor.page.get_by_text(words).first.wait_for()


def test_a_model_without_ears_shows_no_audio_switch(visit: Visit) -> None:
    with served(*NO_AUDIO_BRANCH) as page:
        visitor = visit(url=page.url)
        assert visitor.page.get_by_role("tab", name="Picture").is_visible()
        assert visitor.page.locator("#audio:visible").count() == 0
        assert visitor.page.get_by_role("tab", name="Sound").count() == 0
        visitor.set(Longest_answer=12)
        visitor.choose("video", media_files()["talkie"])
        visitor.ask("What?")
        visitor.answered(1)
        assert visitor.page.locator("#seen .sounds img").count() == 0


def test_who_comes_when_the_queue_is_full_loses_nothing(visit: Visit) -> None:
    with served(concurrency=1, max_queue=1) as page:
        visitor = visit(url=page.url)
        visitors = fill_queue(page.url)
        visitor.ask("May I ask?")
        visitor.page.get_by_text(re.compile("busy|Too many people")).first.wait_for()
        assert visitor.page.input_value("#question textarea") == "May I ask?"
        for busy in visitors:
            page.conversations.of(busy).session.stop()
