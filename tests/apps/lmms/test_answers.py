"""Questions of a harness are answered like those of a chat, each for itself."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.media import tone, write_audio
from tests.reference import ROOT
from tests.tiny_chat import VICUNA, media_files, tiny_chat, tiny_model
from video_llama.apps.lmms import MODEL, manifest
from video_llama.apps.lmms.answers import HarnessAnswer, HarnessRequest, MessageAnswerer

GREEDY = {"max_new_tokens": 8, "temperature": 0, "do_sample": False}


def request(*parts: dict[str, Any], question: str = "What is it?", **options: Any) -> Any:
    content = [*parts, {"type": "text", "text": question}]
    return HarnessRequest([{"role": "user", "content": content}], {**GREEDY, **options})


def video(name: str = "talkie", **span: float) -> dict[str, Any]:
    return {"type": "video", "url": str(media_files()[name]), **span}


def answers(*requests: HarnessRequest, **options: Any) -> list[HarnessAnswer]:
    found = dict(answerer(**options).answer(requests))
    return [found[place] for place in range(len(requests))]


def answerer(*overrides: str, **options: Any) -> MessageAnswerer:
    return MessageAnswerer(tiny_model(*overrides), in_worker=False, **options)


@pytest.mark.parametrize("overrides", [(), VICUNA], ids=["llama_v2", "vicuna"])
def test_answers_are_those_of_a_chat(overrides: tuple[str, ...]) -> None:
    chat, asked = tiny_chat(*overrides), ["What is it?", "What do you hear, and where?"]
    wanted = []
    for question in asked:
        with chat.start(video=media_files()["talkie"]) as session:
            options = {"temperature": 0.0, "max_new_tokens": 8, "min_new_tokens": 0}
            wanted.append("".join(session.ask(question, **options)).strip())
    requests = [request(video(), question=question) for question in asked]
    found = dict(answerer(*overrides, batch_size=2).answer(requests))
    template = tiny_chat(*overrides).answerer.template
    assert [found[i].text for i in range(2)] == [template.clean_answer(text) for text in wanted]
    assert not found[0].error
    assert 0 < found[0].num_tokens <= 8


def test_what_one_item_lacks_is_no_error_of_the_others() -> None:
    missing = {"type": "video", "url": "nowhere.mp4"}
    odd = HarnessRequest([{"role": "tool", "content": "x"}], GREEDY)
    found = answers(request(missing), request(video()), odd, request(video()), batch_size=2)
    assert "nowhere.mp4" in found[0].error
    assert "role 'tool'" in found[2].error
    assert (found[0].text, found[2].text) == ("", "")
    assert found[1] == found[3]
    assert found[1].num_tokens > 0


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "nothing to answer"),
        ([{"role": "assistant", "content": "a"}], "role 'assistant'"),
        ([{"role": "user", "content": [{"type": "smell", "url": "a"}]}], "type 'smell'"),
        ([{"role": "user", "content": [{"type": "image", "url": 3}]}], "type int given"),
        ([{"role": "user", "content": "drum " * 3000}], "context holds 2048"),
    ],
)
def test_what_cannot_be_asked_says_why(messages: list[dict[str, Any]], reason: str) -> None:
    (found,) = answers(HarnessRequest(messages, GREEDY))
    assert reason in found.error
    assert found.text == ""


def test_a_part_of_a_clip_is_seen_and_heard_alone() -> None:
    asker = answerer()
    item = asker._item(video(start_time=1.0, end_time=2.0))
    assert item.frame_seconds
    assert all(1.0 <= second <= 2.0 for second in item.frame_seconds)
    assert item.sound_spans
    assert all(1.0 <= begin < end <= 2.0 for begin, end in item.sound_spans)
    # As a dictionary, too: so tasks write it that have no messages of their own.
    path = str(media_files()["talkie"])
    same = {"type": "video", "url": {"path": path, "video_start": 1.0, "video_end": 2.0}}
    assert asker._item(same) is item
    assert asker._item(video()) is not item
    assert max(asker._item(video()).frame_seconds) > 2.0


def test_a_clip_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asker, decoded = answerer(), []
    decode = asker.encoder.decode
    monkeypatch.setattr(
        asker.encoder, "decode", lambda path, *a, **o: decoded.append(path) or decode(path, *a, **o)
    )
    requests = [request(video(), question=f"Is it {number}?") for number in range(3)]
    assert len(list(asker.answer(requests))) == 3
    assert len(decoded) == 1


def test_decoded_media_are_those_of_their_files(tmp_path: Path) -> None:
    asker, picture = answerer(), media_files()["picture"]
    from_file = asker._item({"type": "image", "url": str(picture)})
    from_memory = asker._item({"type": "image", "url": Image.open(picture)})
    assert from_file.picture is not None
    assert from_memory.picture is not None
    assert from_file.picture.tokens.equal(from_memory.picture.tokens)
    sound = (tone(3.0) * 32767).round().astype(np.int16)
    path = write_audio(tmp_path / "a.wav", sound.astype(np.float32) / 32768)
    array = {"array": sound.reshape(-1) / 32768, "sampling_rate": 16000}
    heard = [asker._item({"type": "audio", "url": each}) for each in (str(path), array)]
    tokens = [item.sound.tokens for item in heard if item.sound is not None]
    assert tokens[0].allclose(tokens[1], atol=1e-3)


def test_earlier_turns_and_a_system_text_are_part_of_the_prompt() -> None:
    asker = answerer()
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [video("silent"), {"type": "text", "text": "A?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
        {"role": "user", "content": [{"type": "text", "text": "B?"}]},
    ]
    ids = asker._prompt(HarnessRequest(messages, GREEDY), 0).ids
    text = asker.model.tokenizer.decode(ids)
    assert text.index("Be brief.") < text.index("A?") < text.index("Yes.") < text.index("B?")


def test_options_of_a_task() -> None:
    def settings(**options: Any) -> Any:
        return answerer()._prompt(request(**{"do_sample": None, **options}), 3).settings

    assert settings().temperature == 0
    assert settings(temperature=0, do_sample=True).temperature == 0
    assert settings(temperature=0.5, do_sample=False).temperature == 0
    assert settings(temperature=None, do_sample=True).temperature == 1
    assert settings(temperature=0.5, do_sample=True).seed == 3
    assert 1000 < settings(max_new_tokens=100_000).max_new_tokens < 2048


def test_a_text_of_the_task_ends_an_answer() -> None:
    (whole,) = answers(request(video()))
    letter = next(letter for letter in whole.text[1:] if letter.strip())
    (cut,) = answers(request(video(), until=[letter]))
    assert cut.text == whole.text.split(letter, 1)[0].strip()


def test_the_entry_point_names_a_class_that_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    def record(model_id: str, chat_class_path: str) -> SimpleNamespace:
        return SimpleNamespace(model_id=model_id, chat_class_path=chat_class_path)

    registry = SimpleNamespace(ModelManifest=record)
    monkeypatch.setitem(__import__("sys").modules, "lmms_eval", SimpleNamespace())
    monkeypatch.setitem(__import__("sys").modules, "lmms_eval.models", SimpleNamespace())
    monkeypatch.setitem(__import__("sys").modules, "lmms_eval.models.registry_v2", registry)
    found = manifest()
    module, name = found.chat_class_path.rsplit(".", 1)
    source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text("utf-8")
    assert f"class {name}(lmms)" in source
    assert found.model_id == MODEL


def test_the_task_of_the_world_names_functions_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    folder = ROOT / "eval_tasks/world"
    task = yaml.load((folder / "video_llama_world.yaml").read_text("utf-8"), Loader)
    monkeypatch.syspath_prepend(str(folder))
    utils = import_module("utils")
    for key in ("doc_to_messages", "process_results"):
        assert callable(getattr(utils, task[key].partition(".")[2]))
    doc = {"path": "clips/a.mp4", "question": "What?", "answer": "A drum."}
    (message,) = utils.messages(doc)
    assert message["content"][0]["url"].endswith("output/world/test/clips/a.mp4")
    assert utils.scores(doc, ["a drum"]) == {"exact_match": 1.0}
    assert utils.scores(doc, ["a bell"]) == {"exact_match": 0.0}
