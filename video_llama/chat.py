"""The chat engine: sessions that hold media and turns. Knows no user interface."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from video_llama.chat_media import Kind, MediaEncoder, MediaItem
from video_llama.datasets.answer import AnswerStream
from video_llama.datasets.conversation import TEMPLATES, Template, Turn
from video_llama.models.generation import GenerationSettings, generate
from video_llama.models.tokenizer import StreamDecoder
from video_llama.models.video_llama import VideoLlama
from video_llama.types import RequestError


@dataclass
class AnswerReport:
    """How an answer came about.

    Attributes:
        prompt: the text that the model saw, media as placeholders.
        num_prompt_tokens: its length, media included.
        num_tokens: tokens of the answer, its stop mark included.
        finished: whether the model ended it, as opposed to the limit or the user.
        timings: seconds until the first token ("first_token") and for all ("generate").
        notices: what the user should know.
    """

    prompt: str = ""
    num_prompt_tokens: int = 0
    num_tokens: int = 0
    finished: bool = False
    timings: dict[str, float] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


class Chat:
    """A model that people ask about media.

    Args:
        model: of `build_model`.

    Raises:
        RequestError: the model has shapes only.
    """

    def __init__(self, model: VideoLlama) -> None:
        if model.device.type == "meta":
            raise RequestError(
                "run.device: meta given, which has shapes only and answers nothing; "
                "use run.device=auto or cpu"
            )
        self.model = model
        self.template: Template = TEMPLATES.get(model.settings.template)
        self.encoder = MediaEncoder(model)
        self.stop_ids = self.template.stop_ids(model.tokenizer)
        self.notices = _stage_notices(model)

    def start(
        self,
        *,
        video: str | Path | None = None,
        image: str | Path | None = None,
        audio: str | Path | None = None,
        use_audio: bool = True,
        num_frames: int | None = None,
        num_clips: int | None = None,
    ) -> Session:
        """A new conversation about the given media, or none.

        Args:
            video: a clip.
            image: a picture.
            audio: a sound, or a clip of which only the sound is heard.
            use_audio: whether the sound of `video` is heard.
            num_frames: frames of a clip; None: as configured.
            num_clips: segments of a sound; None: as configured.

        Raises:
            MediaError: a file cannot be used.
        """
        session = Session(self)
        given: list[tuple[str | Path | None, Kind]] = [
            (video, "video"),
            (image, "image"),
            (audio, "audio"),
        ]
        for path, kind in given:
            if path is not None:
                session.add(
                    path, kind, use_audio=use_audio, num_frames=num_frames, num_clips=num_clips
                )
        return session


class Session:
    """One conversation: its media, its turns, and the report of its last answer.

    Attributes:
        media: every file, in the order of its arrival.
        history: the turns so far.
        report: of the last answer.
    """

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.media: list[MediaItem] = []
        self.history: list[Turn] = []
        self.report = AnswerReport()
        self._num_asked = 0
        self._answering = False

    def add(self, path: str | Path, kind: Kind | None = None, **options: Any) -> MediaItem:
        """Add a file; it becomes part of the next question.

        Args:
            path: of a clip, picture or sound.
            kind: what to take it for; None: what it is.
            options: `use_audio`, `num_frames` and `num_clips`, as in `Chat.start`.

        Raises:
            MediaError: the file cannot be used; the session is as it was.
        """
        item = self.chat.encoder.encode(path, kind, **options)
        self.media.append(item)
        return item

    def ask(self, question: str, **options: Any) -> Iterator[str]:
        """Stream the answer to a question.

        The turn joins the history when the answer ends, also where the caller stops early, with
        what was said until then.

        Args:
            question: any text; nothing in it is parsed.
            options: of `GenerationSettings`.

        Returns:
            An iterator of pieces of text; the stop mark never shows.

        Raises:
            RequestError: an empty or too long question, or an option that is unknown or out of
                range.
        """
        if not question.strip():
            raise RequestError("the question is empty")
        settings = generation_settings(options)
        self._fitting([*self.history, self._turn(question)], settings.max_new_tokens)
        return self._stream(question, settings)

    def _turn(self, question: str) -> Turn:
        """An open turn with the media that no question has come with yet."""
        new = self.media[self._num_asked :]
        return Turn(question, tuple(part for item in new for part in item.parts))

    def _stream(self, question: str, settings: GenerationSettings) -> Iterator[str]:
        if self._answering:
            raise RequestError(
                "the last answer of this session is still being written; finish or close it first"
            )
        # What was added or answered since `ask` was called counts; what is added from now on waits.
        start = time.perf_counter()
        chat, tokenizer = self.chat, self.chat.model.tokenizer
        turn, media = self._turn(question), list(self.media)
        turns, notices = self._fitting([*self.history, turn], settings.max_new_tokens)
        ids = chat.template.chat_ids(turns, tokenizer)
        inputs = self._embed(ids, media)
        self.report = report = AnswerReport(
            prompt=chat.template.chat_text(turns),
            num_prompt_tokens=len(ids),
            notices=[*chat.notices, *(item.notice for item in media if item.notice), *notices],
        )
        answer, decoder = AnswerStream(chat.template.stop_texts), StreamDecoder(tokenizer)
        said = ""
        self._answering = True
        try:
            for token_id in generate(chat.model.language_model, inputs, settings, chat.stop_ids):
                report.num_tokens += 1
                report.timings.setdefault("first_token", time.perf_counter() - start)
                piece = answer.push(decoder.push(token_id))
                said += piece
                if piece:
                    yield piece
                report.finished = token_id == tokenizer.eos_token_id or answer.stopped
                if report.finished:
                    break
            rest = answer.push(decoder.finish()) + answer.finish()
            said += rest
            if rest:
                yield rest
        finally:
            report.timings["generate"] = time.perf_counter() - start
            self.history.append(replace(turn, answer=said.strip()))
            self._num_asked = len(media)
            self._answering = False

    def _embed(self, ids: list[int], media: list[MediaItem]) -> Tensor:
        """(1, L, D) embeddings of a prompt with its media in place."""
        model = self.chat.model
        tokens = [part for item in media for part in item.tokens]
        row = torch.tensor([ids], device=model.device)
        with torch.inference_mode():
            return model.embed(row, torch.cat(tokens, dim=1) if tokens else None)

    def _fitting(self, turns: list[Turn], max_new_tokens: int) -> tuple[list[Turn], list[str]]:
        """The turns that fit into the context, oldest dropped first; media always stay."""
        model = self.chat.model
        context: int = model.language_model.config.max_position_embeddings
        room = context - max_new_tokens
        kept = list(turns)
        while self._num_tokens(kept) > room:
            if len(kept) == 1:
                raise RequestError(
                    f"the question and its media take {self._num_tokens(kept)} tokens and the "
                    f"answer may take {max_new_tokens}, but the model's context holds {context}; "
                    "ask a shorter question or allow a shorter answer (max_new_tokens)"
                )
            oldest, second = kept[0], kept[1]
            kept[:2] = [replace(second, media=oldest.media + second.media)]
        dropped = len(turns) - len(kept)
        turns_word = "turn is" if dropped == 1 else f"{dropped} turns are"
        notice = f"the context is full: the oldest {turns_word} no longer seen, the media still are"
        return kept, [notice] if dropped else []

    def _num_tokens(self, turns: list[Turn]) -> int:
        return len(self.chat.template.chat_ids(turns, self.chat.model.tokenizer))


def generation_settings(options: dict[str, Any]) -> GenerationSettings:
    """Typed settings from keyword options.

    Raises:
        RequestError: an option that does not exist or is out of range.
    """
    unknown = set(options) - set(GenerationSettings.__dataclass_fields__)
    if unknown:
        valid = ", ".join(GenerationSettings.__dataclass_fields__)
        raise RequestError(f"unknown option {sorted(unknown)[0]!r}; valid: {valid}")
    return GenerationSettings(**options)


def _stage_notices(model: VideoLlama) -> list[str]:
    """Branch files that cannot answer questions yet, and weights that are random."""
    notices = [
        f"{report.source.path.name} was saved after stage 1, which only learns captions; a chat "
        "expects a file of stage 2"
        for report in model.load_reports
        if report.manifest is not None and report.manifest.stage == 1
    ]
    if model.random_parts:
        notices.append(
            f"random weights in {', '.join(model.random_parts)}: the answers are nonsense"
        )
    return notices
