"""The page in a real browser: what people do with it, and that it looks after them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib import resources
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
    ("name", "frames", "sounds", "note"),
    [
        ("talkie", 8, 8, "talkie.mp4 can be asked about now"),
        ("silent", 8, 0, "silent.mp4 has no sound track"),
        ("picture", 1, 0, "picture.png can be asked about now"),
        ("wav", 0, 8, "sound.wav can be asked about now"),
    ],
)
def test_every_kind_of_file_is_seen_heard_and_talked_about(
    visitor: Visitor, name: str, frames: int, sounds: int, note: str
) -> None:
    visitor.add(media_files()[name])
    visitor.wait_for_text("#note", note)
    assert visitor.page.locator("#seen .frames img").count() == frames
    assert visitor.page.locator("#seen .sounds img").count() == sounds
    if frames == 8:
        assert visitor.page.locator("#seen .frames figcaption").first.inner_text() == "0.0 s"
    visitor.ask("What is it?")
    (answer,) = visitor.answered(1)
    assert "first word after" in answer
    assert media_files()[name].name in visitor.asked()[0]


def test_three_turns_then_again_then_back_then_anew(visitor: Visitor) -> None:
    visitor.choose(media_files()["talkie"])
    for number, question in enumerate(("One?", "Two?", "Three?"), 1):
        visitor.ask(question)
        visitor.answered(number)
    assert [text.splitlines()[-1] for text in visitor.asked()] == ["One?", "Two?", "Three?"]
    before = visitor.answered(3)
    visitor.set(Temperature=2)
    visitor.press("Retry")
    visitor.page.wait_for_function(
        "before => { const all = [...document.querySelectorAll('#chat .bot')];"
        " return all.length === 3 && all[2].querySelector('details.report')"
        " && all[2].innerText.trim() !== before }",
        arg=before[2],
    )
    assert visitor.answered(3)[:2] == before[:2]
    visitor.press("Undo")
    visitor.answered(2)
    assert visitor.page.input_value("#question textarea") == "Three?"
    visitor.page.click("#restart")
    visitor.wait_for_text("#note", "forgotten")
    visitor.answered(0)
    assert visitor.page.locator("#seen img").count() == 0
    assert visitor.page.locator("#chat video").count() == 0
    visitor.ask("Who are you?")
    assert len(visitor.answered(1)) == 1


def test_an_answer_streams_and_is_stopped(visitor: Visitor) -> None:
    visitor.set(Temperature=1, Longest_answer=1500, Shortest_answer=1500)
    visitor.ask("Tell me all.")
    visitor.page.wait_for_function("document.querySelector('#chat .bot')?.innerText.length > 40")
    visitor.ask("And now?")
    visitor.wait_for_text("#note .error", "an answer is being written")
    assert visitor.page.input_value("#question textarea") == "And now?"
    visitor.page.click("#question .stop-button")
    visitor.wait_for_text("#note", "The answer was stopped.")
    (answer,) = visitor.answered(1)
    assert "stopped" in answer
    assert visitor.page.locator("#question .stop-button").count() == 0
    visitor.set(Shortest_answer=1, Longest_answer=12)
    visitor.ask("And now?")
    visitor.answered(2)


def test_mistakes_are_said_and_lose_nothing(visitor: Visitor, tmp_path: Path) -> None:
    visitor.choose(media_files()["picture"])
    visitor.ask("What?")
    visitor.answered(1)
    visitor.page.press("#question textarea", "Enter")
    visitor.wait_for_text("#note .error", "the question is empty")
    broken = corrupt(write_video(tmp_path / "broken.mp4"), 0.05, 1.0)
    visitor.choose(broken)
    visitor.ask("And this?")
    visitor.wait_for_text("#note .error", "broken.mp4: ")
    assert visitor.page.input_value("#question textarea") == "And this?"
    assert len(visitor.answered(1)) == 1
    (tmp_path / "large.mp4").write_bytes(bytes(2_500_000))
    visitor.page.set_input_files("#question input[type=file]", str(tmp_path / "large.mp4"))
    visitor.page.get_by_text(re.compile("exceed the maximum", re.IGNORECASE)).first.wait_for()
    visitor.ask("And now?")
    visitor.answered(2)


def test_two_browsers_with_two_clips_do_not_mix(visit: Visit) -> None:
    one, other = visit(), visit()
    files = {one: "talkie", other: "picture"}
    for visitor, name in files.items():
        visitor.set(Longest_answer=100, Shortest_answer=100)
        visitor.choose(media_files()[name])
    for visitor, name in files.items():
        visitor.ask(f"What of {name}?")
    for visitor, name in files.items():
        visitor.answered(1)
        foreign = {"talkie": "picture.png", "picture": "talkie.mp4"}[name]
        text = visitor.page.inner_text("body")
        assert media_files()[name].name in text
        assert f"What of {name}?" in text
        assert foreign not in text
        assert visitor.page.locator("#chat .user").count() == 1


def test_an_example_asks_when_it_is_pressed(visitor: Visitor) -> None:
    visitor.page.get_by_role("button", name="A clip with sound").click()
    visitor.answered(1)
    assert "bird.mp4" in visitor.asked()[0]
    assert "What do you see?" in visitor.asked()[0]
    assert visitor.page.locator("#chat video").count() == 1


def test_the_sound_of_a_clip_is_switched_off_and_on(visitor: Visitor) -> None:
    visitor.page.click("#drawer .toggle-button")
    visitor.page.uncheck("#audio input")
    visitor.add(media_files()["talkie"])
    visitor.wait_for_text("#seen", "sound switched off")
    visitor.page.check("#audio input")
    visitor.page.wait_for_selector("#seen .sounds img")


def test_a_conversation_survives_a_reload(visitor: Visitor) -> None:
    visitor.choose(media_files()["picture"])
    visitor.ask("What?")
    before = visitor.answered(1)
    visitor.page.reload()
    assert visitor.answered(1) == before
    visitor.page.wait_for_selector("#seen img")
    visitor.ask("And?")
    assert len(visitor.answered(2)) == 2


def test_one_file_is_taken_out_and_the_other_stays(visitor: Visitor) -> None:
    visitor.choose(media_files()["picture"])
    visitor.ask("What?")
    visitor.answered(1)
    visitor.add(media_files()["wav"])
    visitor.page.wait_for_selector("#seen .sounds img")
    visitor.page.get_by_role("button", name="Remove picture.png").click()
    visitor.wait_for_text("#note", "picture.png was taken out")
    visitor.page.wait_for_selector("#seen .frames", state="detached")
    assert visitor.page.locator("#seen .sounds").count() == 1
    assert visitor.asked()[0] == "What?"


def test_the_composer_has_the_focus_and_text_alone_is_said(visit: Visit) -> None:
    visitor = visit()
    assert visitor.page.evaluate("document.activeElement.closest('#question') !== null")
    visitor.ask("Who are you?")
    assert "answered from text alone" in visitor.answered(1)[0]


def test_on_a_phone_the_composer_and_the_last_answer_are_in_view(visit: Visit) -> None:
    visitor = visit(width=390, height=844)
    visitor.set(Longest_answer=12)
    for number in (1, 2, 3):
        visitor.ask(f"Question {number}?")
        visitor.answered(number)
    for selector in ("#question textarea", "#chat .bot >> nth=-1"):
        box = visitor.page.locator(selector).bounding_box()
        assert box["y"] >= 0, selector
        assert box["y"] + box["height"] <= 844, selector
    visitor.page.click("#look")
    assert visitor.page.is_visible("#seen")


HAND_IN = """([how, selector, name, type, text]) => {
  const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name, { type }));
  const options = { bubbles: true, cancelable: true };
  document.querySelector(selector).dispatchEvent(how === "paste"
    ? new ClipboardEvent("paste", { clipboardData: data, ...options })
    : new DragEvent("drop", { dataTransfer: data, ...options }));
}"""


@pytest.mark.parametrize(
    ("how", "name", "type_"),
    [
        ("paste", "talkie", "video/mp4"),
        ("paste", "picture", "image/png"),
        ("paste", "wav", "audio/wav"),
        ("drop", "talkie", "video/mp4"),
    ],
)
def test_files_are_pasted_and_dropped_anywhere(
    visitor: Visitor, how: str, name: str, type_: str
) -> None:
    import base64

    path = media_files()[name]
    text = base64.b64encode(path.read_bytes()).decode()
    visitor.page.evaluate(HAND_IN, [how, "#intro", path.name, type_, text])
    visitor.page.get_by_label("Remove file").first.wait_for()
    visitor.ask("What is it?")
    visitor.answered(1)
    assert path.name in visitor.asked()[0]


def test_a_recording_is_understood(visitor: Visitor) -> None:
    visitor.page.click("#question .microphone-button")
    visitor.page.click("#question .record-button")
    visitor.page.wait_for_timeout(2500)
    visitor.page.click("#question .stop-button")
    visitor.page.wait_for_timeout(1000)
    visitor.page.press("#question textarea", "Enter")
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
    visitor.add(media_files()["talkie"])
    visitor.wait_for_text("#note", "can be asked about now")
    visitor.set(Longest_answer=12)
    visitor.ask("What is it?" * 20 + "a" * 200)
    visitor.answered(1)
    page = visitor.page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for selector in ("#restart", "#question", "#chat"):
        box = page.locator(selector).bounding_box()
        assert box["x"] >= 0, selector
        assert box["x"] + box["width"] <= width, selector
    for selector in ("#chat .user", "#chat .report summary", "#intro .note"):
        assert page.locator(selector).first.evaluate(CONTRAST) >= 4.5, selector


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_serious(visit: Visit, width: int, scheme: str) -> None:
    axe = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")
    visitor = visit(width=width, height=844, scheme=scheme)
    visitor.page.evaluate(axe)
    found = visitor.page.evaluate("axe.run()")["violations"]
    visitor.set(Longest_answer=12)
    visitor.choose(media_files()["talkie"])
    visitor.ask("What?")
    visitor.answered(1)
    found += visitor.page.evaluate("axe.run()")["violations"]
    grave = [fault for fault in found if fault["impact"] in ("serious", "critical")]
    assert [(fault["id"], fault["nodes"][0]["html"][:200]) for fault in grave] == []


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
"""How much lighter one of text and ground is than the other (WCAG asks for 4.5)."""


def test_title_limits_terms_and_citation_are_there(visitor: Visitor) -> None:
    assert visitor.page.title() == "Video-LLaMA"
    visitor.page.click("#drawer .toggle-button")
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
        assert visitor.page.locator("#audio:visible").count() == 0
        assert visitor.page.get_by_role("button", name="A sound").count() == 0
        visitor.set(Longest_answer=12)
        visitor.choose(media_files()["talkie"])
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
