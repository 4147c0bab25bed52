"""What the model is asked: token for token what training saw, and the original's answers to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data_sets import entry, write_json
from tests.golden_model import golden, golden_model
from tests.models.golden_runs import chat_outputs
from tests.tiny_chat import VICUNA, answer, media_files, tiny_chat
from video_llama.chat.engine import Chat
from video_llama.chat.media import EncodedMedia, MediaItem
from video_llama.chat.prompt import ChatTurn, PromptBuilder
from video_llama.datasets.base import BuildInfo
from video_llama.datasets.loading import build_items
from video_llama.datasets.sampling import torch_generator
from video_llama.models.generation.generate import AnswerText
from video_llama.text.questions import Media
from video_llama.types import IGNORE_INDEX, RequestError

TEMPLATES = {"llama_v2": (), "vicuna": VICUNA}
PAIRS = [("What is in it?", "A red thing."), ("Does it move?", "Yes, it does.")]


@pytest.fixture(params=list(TEMPLATES))
def chat(request: pytest.FixtureRequest) -> Chat:
    return tiny_chat(*TEMPLATES[request.param])


def trained(chat: Chat, name: str, annotation: Path, media: Path) -> tuple[list[int], list[int]]:
    """Ids and labels of the first training item of a data set."""
    settings = entry(name, BuildInfo(anno_dir=str(annotation), videos_dir=str(media)))
    settings.num_video_query_token = chat.model.settings.num_video_query_token
    items = build_items(
        name,
        settings,
        split="train",
        tokenizer=chat.model.tokenizer,
        template=chat.answerer.template,
    )
    assert items is not None
    item = items.load(0, torch_generator("test"))
    return item.input_ids, item.labels


def asked(chat: Chat, path: Path, **kind: Any) -> list[list[int]]:
    """The prompts of a session in which the model says what training taught it to."""
    session, prompts = chat.start(), []
    session.add(path, **kind)
    for question, reply in PAIRS:
        answer(session, question)
        built = chat.answerer.prompts.build(
            [*session._turns[:-1], ChatTurn(question, session._turns[-1].items)], 8
        )
        assert session.report.prompt == built.text
        prompts.append(built.ids)
        last = session._turns[-1]
        session._turns[-1] = ChatTurn(last.question, last.items, reply)
    return prompts


def check_prefix(prompts: list[list[int]], ids: list[int], labels: list[int]) -> None:
    for prompt in prompts:
        assert ids[: len(prompt)] == prompt
        assert labels[len(prompt)] != IGNORE_INDEX  # there the answer begins
    assert len(prompts) == 2


def test_a_clip_is_asked_about_as_in_training(chat: Chat, tmp_path: Path) -> None:
    clip = media_files()["silent"]
    pairs = [{"q": question, "a": reply} for question, reply in PAIRS]
    annotation = write_json(tmp_path / "a.json", [{"video": clip.name, "QA": pairs}])
    ids, labels = trained(chat, "webvid_instruct", annotation, clip.parent)
    check_prefix(asked(chat, clip), ids, labels)
    assert ids.count(chat.model.media_token_id) == chat.model.settings.num_video_query_token


def test_a_picture_is_asked_about_as_in_training(chat: Chat, tmp_path: Path) -> None:
    picture = media_files()["picture"]
    sentences = []
    for number, (question, reply) in enumerate(PAIRS):
        question = f"<image> {question}" if number == 0 else question
        sentences += [{"from": "human", "value": question}, {"from": "gpt", "value": reply}]
    entry_ = {"image": picture.name, "conversations": sentences}
    annotation = write_json(tmp_path / "a.json", [entry_])
    ids, labels = trained(chat, "llava_instruct", annotation, picture.parent)
    check_prefix(asked(chat, picture), ids, labels)


LISTEN = "Close your eyes, open your ears and you imagine only based on the sound that: "
SOUND = f"{LISTEN}{'<ImageHere>' * 4}. "


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("wav", f"{SOUND}Now answer my question based on what you have just heard. "),
        (
            "talkie",
            f"{SOUND}Close your ears, open your eyes and you see that "
            f"<Video>{'<ImageHere>' * 8}</Video>. The video contains 8 frames sampled at "
            "0.0, 0.4, 0.8, 1.1, 1.5, 1.9, 2.2, 2.6 seconds. "
            "Now answer my question based on what you have just seen and heard. ",
        ),
        ("picture", f"<Image>{'<ImageHere>' * 8}</Image> "),
    ],
)
def test_media_are_introduced_as_agreed(chat: Chat, name: str, expected: str) -> None:
    session = chat.start()
    session.add(media_files()[name])
    answer(session, "What is it?")
    start = session.report.prompt.index(expected[:8])
    assert session.report.prompt[start:].startswith(f"{expected}What is it?")


@pytest.mark.parametrize("case", [f"{t}/{m}" for t in TEMPLATES for m in ("video", "audiovideo")])
def test_the_original_context_gets_the_original_ids(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = golden().case(f"chat/{case}")
    stored = expected["context_emb"]
    complete = len(stored.values) == torch.Size(stored.shape).numel()
    context = stored.whole() if complete else chat_outputs(f"chat/{case}")["context_emb"]
    chat, ids = Chat(golden_model()), []
    chat.answerer.template = type(chat.answerer.template)(
        **{**vars(chat.answerer.template), "stop_texts": ("</s>",)}
    )
    push = AnswerText.push
    monkeypatch.setattr(chat.model, "embed", lambda *_: context)
    monkeypatch.setattr(AnswerText, "push", lambda t, token: ids.append(token) or push(t, token))
    built = PromptBuilder.build
    length = context.shape[1]
    monkeypatch.setattr(
        PromptBuilder,
        "build",
        lambda *a, **k: type(p := built(*a, **k))(
            [0] * length, list(range(length)), p.text, p.media, p.num_dropped
        ),
    )
    session = chat.start()
    greedy = {"temperature": 0.0, "min_new_tokens": 0, "max_new_tokens": 24}
    "".join(session.ask("What?", **greedy))
    assert [1, *ids] == expected["greedy_ids"].values.tolist()
    for again in (False, True):  # from nothing, and from what the session still knows
        ids.clear()
        session = session if again else chat.start()
        beams = {**greedy, "max_new_tokens": 12, "num_beams": 3, "repetition_penalty": 1.2}
        "".join(session.ask("What?", **beams))
        assert [1, *ids] == expected["beam3_rep1p2_ids"].values.tolist()
    assert session.report.num_reused_tokens > 0


def item(num_tokens: int) -> MediaItem:
    part = EncodedMedia(Media("image", num_tokens), torch.zeros(1, num_tokens, 4))
    return MediaItem(Path("a.png"), "image", picture=part)


def builder(context: int) -> PromptBuilder:
    chat = tiny_chat()
    return PromptBuilder(chat.answerer.template, chat.model.tokenizer, context)


def test_the_oldest_turns_go_but_their_media_stay() -> None:
    turns = [ChatTurn(f"Question {n}?", (item(8),), "An answer.") for n in range(9)]
    turns.append(ChatTurn("The last one?"))
    whole = builder(4000).build(turns, 10)
    assert whole.num_dropped == 0
    short = builder(len(whole.ids)).build(turns, 10)
    assert 0 < short.num_dropped < 9
    assert len(short.ids) <= 0.75 * (len(whole.ids) - 10)
    assert len(short.media) == 9
    assert short.text.count("<ImageHere>") == 72
    assert f"Question {short.num_dropped}?" in short.text
    assert f"Question {short.num_dropped - 1}?" not in short.text
    later = [*turns[:-1], ChatTurn("The last one?", (), "Yes."), ChatTurn("One more?")]
    again = builder(len(whole.ids)).build(later, 10, num_dropped=short.num_dropped)
    assert again.num_dropped == short.num_dropped
    common = sum(1 for old, new in zip(short.marks, again.marks, strict=False) if old == new)
    assert common > len(short.marks) - 4


def test_equal_text_with_other_media_has_other_marks() -> None:
    first, second = item(8), item(8)
    one, two = (builder(2000).build([ChatTurn("What?", (i,))], 10) for i in (first, second))
    assert one.ids == two.ids
    assert [a == b for a, b in zip(one.marks, two.marks, strict=True)].count(False) == 8


def test_a_last_question_that_does_not_fit_is_refused() -> None:
    with pytest.raises(RequestError, match=r"take \d+ tokens .* context holds 100"):
        builder(100).build([ChatTurn("What?", (item(96),))], 10)
