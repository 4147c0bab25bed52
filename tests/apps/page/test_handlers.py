"""What happens when something is pressed, and what the page says when it cannot happen."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from tests.media import corrupt, tone, write_audio, write_video
from tests.tiny_chat import SPOKEN, media_files, tiny_chat
from video_llama.apps.page.handlers import Chosen, Handlers, View
from video_llama.apps.page.options import ServerOptions
from video_llama.apps.page.uploads import Uploads
from video_llama.apps.page.visitors import Conversations

SHORT: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 4}
NOTHING = Chosen([])


class Visit:
    """A visitor, whose page is what the views have made of it."""

    def __init__(self, handlers: Handlers, name: str) -> None:
        self.handlers, self.name = handlers, name
        self.page: dict[str, Any] = {}
        self.views: list[View] = []

    def follow(self, views: Iterator[View]) -> Visit:
        for view in views:
            self.see(view)
        return self

    def see(self, view: View) -> Visit:
        self.views.append(view)
        self.page |= {key: value for key, value in vars(view).items() if value is not None}
        return self

    def start(self, *files: Path, use_audio: bool = True) -> Visit:
        chosen = Chosen([str(file) for file in files], use_audio)
        return self.follow(self.handlers.ask(self.name, "", chosen, SHORT))

    def ask(self, question: str, chosen: Chosen = NOTHING, **options: Any) -> Visit:
        options = {**SHORT, **options}
        return self.follow(self.handlers.ask(self.name, question, chosen, options))

    @property
    def chat(self) -> list[tuple[str, str]]:
        return [(message["role"], message["content"]) for message in self.page["chat"]]

    @property
    def error(self) -> str:
        assert 'role="alert"' in self.page["note"], self.page["note"]
        return unescape(re.sub("<[^>]+>", "", self.page["note"]))


@pytest.fixture
def handlers(tmp_path: Path) -> Handlers:
    uploads = Uploads(tmp_path, ServerOptions(max_file_mb=1, max_minutes=0.2))
    return Handlers(Conversations(tiny_chat()), uploads)


@pytest.fixture
def visit(handlers: Handlers) -> Visit:
    return Visit(handlers, "a")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """The usual files as uploads."""
    return {name: Path(shutil.copy(path, tmp_path)) for name, path in media_files().items()}


def test_starting_shows_what_the_model_sees_and_hears(visit: Visit, files: dict[str, Path]) -> None:
    visit.start(files["talkie"])
    seen = visit.page["seen"]
    assert seen.count('class="seen-grid frames"') == seen.count('class="seen-grid sounds"') == 1
    assert seen.count("<img") == 8 + 8
    assert 'alt="Frame at 0.0 s"' in seen
    assert re.search(r'alt="Mel spectrogram of 0\.0-2\.0 s"', seen)
    assert "8 frames · 8 sound segments" in seen
    assert "talkie.mp4 can be asked about now." in visit.page["note"]


@pytest.mark.parametrize(
    ("name", "use_audio", "said"),
    [
        ("silent", True, "silent.mp4 has no sound track"),
        ("talkie", False, "sound switched off"),
        ("picture", True, "the picture"),
        ("wav", True, "8 sound segments"),
    ],
)
def test_every_kind_of_file_is_shown(
    visit: Visit, files: dict[str, Path], name: str, use_audio: bool, said: str
) -> None:
    visit.start(files[name], use_audio=use_audio)
    assert said in visit.page["seen"]
    assert ("sounds" in visit.page["seen"]) is (name == "wav")


def test_an_answer_grows_and_gets_its_timings(visit: Visit, files: dict[str, Path]) -> None:
    visit.start(files["picture"])
    visit.views.clear()
    visit.ask("What is it?", **SPOKEN)
    growing = [view.chat[-1]["content"] for view in visit.views[1:-1] if view.chat]
    assert growing
    assert all(view.answering for view in visit.views[:-1])
    assert visit.views[0].question == ""
    assert not visit.views[-1].answering
    (_, question), (_, answer) = visit.chat
    assert question == "Picture: picture.png\nWhat is it?"
    assert answer.startswith(growing[0].strip())
    report = visit.page["chat"][-1]["report"]
    assert re.search(r"first word after \d+\.\d\d s · \d+\.\d\d s for 40 tokens", report)
    assert "&lt;ImageHere&gt;" in report


def test_files_that_were_chosen_but_not_started_come_with_the_question(
    visit: Visit, files: dict[str, Path]
) -> None:
    visit.ask("What?", Chosen([str(files["wav"]), str(files["picture"])]))
    assert visit.chat[0][1] == "Sound: sound.wav\nPicture: picture.png\nWhat?"
    visit.ask("And?", Chosen([str(files["wav"]), str(files["picture"])]))
    assert visit.chat[2][1] == "And?"


def test_a_question_needs_no_file(visit: Visit) -> None:
    visit.ask("Who are you?")
    assert len(visit.chat) == 2
    assert "answered from text alone" in visit.page["chat"][-1]["report"]


@pytest.mark.parametrize("question", ["", "  \n"])
def test_an_empty_question_loses_nothing(
    visit: Visit, files: dict[str, Path], question: str
) -> None:
    visit.start(files["picture"]).ask("What?")
    before = visit.chat
    visit.ask(question)
    assert visit.error == "the question is empty: type something to ask"
    assert visit.chat == before
    visit.ask("And?")
    assert len(visit.chat) == 4


def test_a_corrupt_file_is_named_and_the_conversation_goes_on(
    visit: Visit, files: dict[str, Path], tmp_path: Path
) -> None:
    visit.start(files["picture"]).ask("What?")
    broken = corrupt(write_video(tmp_path / "broken.mp4"), 0.05, 1.0)
    visit.start(broken)
    assert visit.error.startswith("broken.mp4: ")
    assert str(tmp_path) not in visit.error
    visit.ask("And?", Chosen([str(broken)]))
    assert visit.error.startswith("broken.mp4: ")
    assert visit.page["question"] == "And?", "the question is not lost"
    assert len(visit.chat) == 2
    assert len(visit.ask("And?").chat) == 4


def test_large_long_and_foreign_files_are_refused(visit: Visit, tmp_path: Path) -> None:
    large = tmp_path / "large.mp4"
    large.write_bytes(bytes(1_100_000))
    assert visit.start(large).error == "large.mp4: it has 1.1 MB, at most 1 MB here"
    long = write_audio(tmp_path / "long.mp3", tone(14.0))
    assert "long.mp3: it lasts 0.2 minutes, at most 0.2 here" in visit.start(long).error
    foreign = visit.start(Path("/etc/passwd")).error
    assert foreign == "passwd: it was not uploaded to this page"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": 1e9}, "temperature: 1000000000.0 given"),
        ({"max_new_tokens": 10**6}, "the model's context holds"),
        ({"seed": -1}, "seed: -1 given"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens: 9 given"),
    ],
)
def test_an_impossible_option_keeps_the_question(
    visit: Visit, options: dict[str, Any], said: str
) -> None:
    visit.ask("What?", **options)
    assert said in visit.error
    assert visit.page["question"] == "What?"


def test_stop_keeps_what_was_said(visit: Visit, handlers: Handlers) -> None:
    options = {**SPOKEN, "max_new_tokens": 1000, "min_new_tokens": 1000}
    views = handlers.ask("a", "Tell me all.", NOTHING, options)
    for _ in range(2):
        visit.see(next(views))
    handlers.stop("a")
    visit.follow(views)
    assert "The answer was stopped." in visit.page["note"]
    assert "stopped" in visit.page["chat"][-1]["report"]
    assert visit.chat[-1][1]
    assert not visit.page["answering"]
    assert len(visit.ask("And?").chat) == 4


def test_stopping_what_does_not_run_does_nothing(handlers: Handlers) -> None:
    handlers.stop("a")
    handlers.stop("nobody")


def test_regenerate_replaces_the_last_answer(visit: Visit, files: dict[str, Path]) -> None:
    visit.start(files["picture"]).ask("What?", **SPOKEN)
    first = visit.chat
    options = {**SPOKEN, "seed": 7}
    visit.follow(visit.handlers.regenerate("a", options))
    assert len(visit.chat) == 2
    assert visit.chat[0] == first[0]
    assert visit.chat[1] != first[1]


def test_regenerate_and_undo_need_a_question(visit: Visit) -> None:
    visit.follow(visit.handlers.regenerate("a", {}))
    assert "there is no question yet" in visit.error
    visit.see(visit.handlers.undo("a"))
    assert "there is no question yet" in visit.error


def test_undo_puts_the_question_back(visit: Visit, files: dict[str, Path]) -> None:
    visit.start(files["picture"]).ask("What?").ask("And?")
    visit.see(visit.handlers.undo("a"))
    assert visit.page["question"] == "And?"
    assert len(visit.chat) == 2
    visit.see(visit.handlers.undo("a"))
    assert visit.chat == [("user", "Picture: picture.png")], "the file waits for a question again"


def test_a_file_is_taken_out_and_its_turn_stays(visit: Visit, files: dict[str, Path]) -> None:
    visit.start(files["picture"], files["wav"]).ask("What?")
    visit.see(visit.handlers.remove("a", str(files["picture"])))
    assert visit.chat[0] == ("user", "Sound: sound.wav\nWhat?")
    assert "picture.png" not in visit.page["seen"]
    visit.see(visit.handlers.remove("a", "/etc/passwd"))
    assert visit.error == "passwd: no such file in this conversation"
    assert "sound.wav" in visit.page["seen"]


def test_a_page_that_is_loaded_anew_gets_its_conversation_back(
    handlers: Handlers, files: dict[str, Path]
) -> None:
    before = Visit(handlers, "a").start(files["picture"]).ask("What?")
    after = Visit(handlers, "b")
    after.see(handlers.resume("b", "a"))
    assert after.chat == before.chat
    assert len(after.ask("And?").chat) == 4


def test_a_second_window_does_not_take_the_conversation_of_the_first(
    handlers: Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("video_llama.apps.page.visitors.SECONDS_TO_HAND_OVER", 0.0)
    first = Visit(handlers, "a").ask("What?")
    handlers._conversations.arrive("a")
    second = Visit(handlers, "b")
    second.see(handlers.resume("b", "a"))
    assert second.chat == []
    assert len(first.ask("And?").chat) == 4


def test_a_question_during_an_answer_is_refused_and_kept(visit: Visit, handlers: Handlers) -> None:
    views = handlers.ask("a", "Tell me all.", NOTHING, SPOKEN)
    for _ in range(2):
        visit.see(next(views))
    visit.ask("And?")
    assert "an answer is being written" in visit.error
    assert visit.page["question"] == "And?"
    assert visit.page["answering"], "Stop stays"
    visit.follow(views)
    assert len(visit.chat) == 2


def test_restart_forgets_everything(visit: Visit, files: dict[str, Path]) -> None:
    visit.start(files["picture"]).ask("What?")
    visit.see(visit.handlers.restart("a"))
    assert visit.chat == []
    assert "<img" not in visit.page["seen"]


def test_a_restart_in_mid_answer_is_not_undone_by_the_old_answer(
    visit: Visit, handlers: Handlers
) -> None:
    options = {**SPOKEN, "max_new_tokens": 1000, "min_new_tokens": 1000}
    early = handlers.ask("a", "Tell me all.", NOTHING, options)
    visit.see(next(early))
    visit.see(handlers.restart("a"))
    assert list(early) == []
    assert visit.chat == []
    assert visit.handlers._conversations.of("a").session.history == []


def test_the_sound_of_a_clip_is_switched(visit: Visit, files: dict[str, Path]) -> None:
    visit.start(files["talkie"])
    visit.see(visit.handlers.set_audio("a", False))
    assert "sound switched off" in visit.page["seen"]
    assert "sounds" not in visit.page["seen"]
    visit.see(visit.handlers.set_audio("a", True))
    assert "8 sound segments" in visit.page["seen"]


def test_a_page_that_is_closed_ends_its_answer(visit: Visit, handlers: Handlers) -> None:
    views = handlers.ask("a", "Tell me all.", NOTHING, SPOKEN)
    for _ in range(2):
        next(views)
    views.close()  # type: ignore[attr-defined]
    conversation = handlers._conversations.of("a")
    assert not conversation.session.is_answering
    assert len(conversation.session.history) == 1


def test_two_visitors_see_their_own(handlers: Handlers, files: dict[str, Path]) -> None:
    one, other = Visit(handlers, "a"), Visit(handlers, "b")
    one.start(files["talkie"])
    other.start(files["picture"])
    left = handlers.ask("a", "Left?", NOTHING, SPOKEN)
    right = handlers.ask("b", "Right?", NOTHING, SPOKEN)
    for _ in range(2):
        one.see(next(left))
        other.see(next(right))
    one.follow(left)
    other.follow(right)
    assert next(text for _, text in one.chat) == "Video: talkie.mp4\nLeft?"
    assert next(text for _, text in other.chat) == "Picture: picture.png\nRight?"
    for visit, foreign in ((one, "picture.png"), (other, "talkie.mp4")):
        assert foreign not in visit.page["seen"] + str(visit.page["chat"])


def test_a_conversation_that_was_freed_is_said(visit: Visit, handlers: Handlers) -> None:
    visit.ask("What?")
    handlers._conversations.close()
    visit.ask("And?")
    assert "was closed because" in visit.error
    assert visit.page["question"] == "And?"
    visit.see(handlers.restart("a"))
    assert visit.chat == []
    assert len(visit.ask("And?").chat) == 2


@pytest.mark.parametrize(
    "text", ["<img src=x onerror=alert(1)>", "![x](http://127.0.0.1:9/x.png)", "a\x00b\u202e"]
)
def test_names_and_questions_stay_text(visit: Visit, tmp_path: Path, text: str) -> None:
    name = text.replace("/", "_").replace("\x00", "") + ".png"
    path = Path(shutil.copy(media_files()["picture"], tmp_path / name))
    visit.ask(text, Chosen([str(path)]))
    assert "<img src=x" not in visit.page["seen"]
    assert "<img src=x" not in visit.page["chat"][-1]["report"]
    assert "\x00" not in visit.chat[0][1]
