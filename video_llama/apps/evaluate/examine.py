"""Questions about clips, answered with their media and with less than that."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import video_llama.common.compat

import torch
from torch import Tensor

from video_llama.apps.evaluate.questions import (
    CONDITIONS,
    ClipQuestion,
    Condition,
    other_clips,
    read_questions,
)
from video_llama.apps.evaluate.scores import ScoredAnswer
from video_llama.chat.media import MediaEncoder, MediaItem
from video_llama.models.video_llama import VideoLlama
from video_llama.text.questions import Media
from video_llama.text.templates import TEMPLATES, Turn

__all__ = ["CONDITIONS", "Clip", "ClipQuestion", "Condition", "Examiner", "Part", "read_questions"]

MAX_NEW_TOKENS = 12


@dataclass(frozen=True)
class Part:
    """Media of a prompt: how they are announced, and their (1, N, D) tokens."""

    media: Media
    tokens: Tensor


@dataclass(frozen=True)
class Clip:
    """A clip as the model takes it in.

    Attributes:
        sound: of the clip; None where it has none.
        picture: its frames.
        shuffled: its frames in random order.
    """

    sound: Part | None
    picture: Part
    shuffled: Part


@dataclass
class Prompt:
    """What is asked once.

    Attributes:
        ids: tokens of the text, with places for the media.
        parts: the media.
        questions: all that come out as this.
    """

    ids: list[int]
    parts: list[Part]
    questions: list[ClipQuestion] = field(default_factory=list)


class Examiner:
    """Asks a model questions, in batches.

    Args:
        model: in eval mode.
        seed: of the order of shuffled frames.
        batch_size: questions answered together.
    """

    def __init__(self, model: VideoLlama, *, seed: int = 0, batch_size: int = 32) -> None:
        self._model = model
        self._encoder = MediaEncoder(model)
        self._random = torch.Generator().manual_seed(seed)
        self._batch_size = batch_size
        self._template = TEMPLATES.get(model.settings.template)

    def look(self, path: Path) -> MediaItem:
        """A clip with its frames and spectrograms, as they are taken in, to show to people.

        Raises:
            MediaError: it cannot be used.
        """
        return self._encoder.encode(path, "video")

    @torch.inference_mode()
    def read(self, path: Path) -> Clip:
        """Decode and encode a clip.

        Raises:
            MediaError: it cannot be used.
        """
        item = self.look(path)
        parts = [Part(each.media, each.tokens) for each in item.encoded]
        picture = parts[-1]
        assert item.frames is not None
        order = torch.randperm(item.frames.shape[1], generator=self._random)
        settings = self._encoder.processing.video
        pixels = item.frames[:, order].float().div(255)
        mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in (settings.mean, settings.std))
        video = ((pixels - mean) / std)[None].to(self._model.device)
        shuffled = replace(picture, tokens=self._model.encode_video(video))
        return Clip(parts[0] if len(parts) > 1 else None, picture, shuffled)

    def ask(
        self, questions: Sequence[ClipQuestion], clips: dict[Path, Clip], condition: Condition
    ) -> Iterator[ScoredAnswer]:
        """Answers to all questions under one condition, not in their order.

        Args:
            questions: what is asked.
            clips: of `read`, by the paths of the questions.
            condition: what the model is given.
        """
        paths = [question.path for question in questions]
        if condition == "other":
            paths = other_clips(questions)
        prompts: dict[tuple[tuple[int, ...], tuple[int, ...]], Prompt] = {}
        for question, path in zip(questions, paths, strict=True):
            parts = _given(clips[path], condition)
            turn = Turn(question.question, tuple(part.media for part in parts))
            ids = self._template.chat_ids([turn], self._model.tokenizer)
            # Without media many questions are the same prompt, which is answered once.
            same = (tuple(ids), tuple(id(part) for part in parts))
            prompts.setdefault(same, Prompt(ids, parts)).questions.append(question)
        groups: dict[int, list[Prompt]] = defaultdict(list)
        for prompt in prompts.values():
            groups[len(prompt.ids)].append(prompt)
        for group in groups.values():
            for start in range(0, len(group), self._batch_size):
                batch = group[start : start + self._batch_size]
                for prompt, text in zip(batch, self._texts(batch), strict=True):
                    for question in prompt.questions:
                        yield _scored(question, condition, self._template.clean_answer(text))

    @torch.inference_mode()
    def _texts(self, prompts: Sequence[Prompt]) -> list[str]:
        """What the model says to prompts of the same length."""
        rows = [torch.cat([p.tokens for p in each.parts], dim=1) for each in prompts if each.parts]
        ids = torch.tensor([prompt.ids for prompt in prompts], device=self._model.device)
        embedded = self._model.embed(ids, torch.cat(rows) if rows else None)
        tokenizer: Any = self._model.tokenizer
        # Typed as Any: transformers' annotation of `generate` fits no class of its own.
        language_model: Any = self._model.language_model
        said = language_model.generate(
            inputs_embeds=embedded,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        return [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in said]


def _scored(question: ClipQuestion, condition: Condition, said: str) -> ScoredAnswer:
    return ScoredAnswer(
        item_id=question.item_id,
        type=question.type,
        condition=condition,
        question=question.question,
        reference=question.answer,
        answer=said,
        chance=question.chance,
        opposite=question.opposite,
        contradictory=question.contradictory,
    )


def _given(clip: Clip, condition: Condition) -> list[Part]:
    sound = [] if clip.sound is None else [clip.sound]
    given: dict[Condition, list[Part]] = {
        "withheld": [],
        "picture": [clip.picture],
        "sound": sound,
        "shuffled": [clip.shuffled],
    }
    return given.get(condition, [*sound, clip.picture])
