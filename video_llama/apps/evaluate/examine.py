"""Questions about clips, answered with their media and with less than that."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import video_llama.common.compat

import torch
from torch import Tensor

from video_llama.apps.evaluate.questions import ClipQuestion, Condition, other_clips
from video_llama.apps.evaluate.scores import ScoredAnswer
from video_llama.chat.media import MediaEncoder, MediaItem
from video_llama.models.generation.generate import AnswerText, Row, generate
from video_llama.models.generation.settings import GenerationSettings
from video_llama.models.video_llama import VideoLlama
from video_llama.text.questions import Media
from video_llama.text.templates import TEMPLATES, Turn

MAX_NEW_TOKENS = 12

_SETTINGS = GenerationSettings(max_new_tokens=MAX_NEW_TOKENS, min_new_tokens=0, temperature=0.0)


@dataclass(frozen=True)
class MediaTokens:
    """Media of a prompt: how they are announced, and their (1, N, D) tokens."""

    media: Media
    tokens: Tensor


@dataclass(frozen=True)
class Clip:
    """A clip as the model takes it in: its sound, if any, its frames, and those in random order."""

    sound: MediaTokens | None
    picture: MediaTokens
    shuffled: MediaTokens


@dataclass
class QuestionGroup:
    """Questions that come out as the same prompt, whose ids have places for the media."""

    ids: list[int]
    media: list[MediaTokens]
    questions: list[ClipQuestion] = field(default_factory=list)


class Examiner:
    """Asks a model in eval mode questions, in batches; `seed` orders shuffled frames."""

    def __init__(self, model: VideoLlama, *, seed: int = 0, batch_size: int = 32) -> None:
        self._model = model
        self._encoder = MediaEncoder(model)
        self._random = torch.Generator().manual_seed(seed)
        self._batch_size = batch_size
        self._template = TEMPLATES.get(model.settings.template)

    def look(self, path: Path) -> MediaItem:
        """Read a clip with its frames and spectrograms, as they are taken in, to show to people.

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
        found = [MediaTokens(each.media, each.tokens) for each in item.encoded]
        assert item.frames is not None
        # One order per clip, whatever is asked of it, so that the answers are of the same film.
        order = torch.randperm(item.frames.shape[1], generator=self._random)
        # The item keeps the frames as people see them: normalise them again.
        settings = self._encoder.processing.video
        pixels = item.frames[:, order].float().div(255)
        mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in (settings.mean, settings.std))
        video = ((pixels - mean) / std)[None].to(self._model.device)
        shuffled = replace(found[-1], tokens=self._model.encode_video(video))
        return Clip(found[0] if len(found) > 1 else None, found[-1], shuffled)

    def ask(
        self, questions: Sequence[ClipQuestion], clips: dict[Path, Clip], condition: Condition
    ) -> Iterator[ScoredAnswer]:
        """Answer all questions under one condition, not in their order; `clips` are of `read`."""
        paths = [question.path for question in questions]
        if condition == "other":
            # Not any other clip: chance stays what it is only if the pairs are dealt evenly.
            paths = other_clips(questions)
        groups: dict[tuple[tuple[int, ...], tuple[int, ...]], QuestionGroup] = {}
        for question, path in zip(questions, paths, strict=True):
            media = _given(clips[path], condition)
            turn = Turn(question.question, tuple(each.media for each in media))
            ids = self._template.chat_ids([turn], self._model.tokenizer)
            problem = self._too_long(len(ids))
            if problem:
                yield ScoredAnswer(question=question, condition=condition, error=problem)
                continue
            # Without media many questions are the same prompt, which is answered once.
            same = (tuple(ids), tuple(id(each) for each in media))
            groups.setdefault(same, QuestionGroup(ids, media)).questions.append(question)
        # Prompts of one length are answered together: they need no padding, and so no mask.
        lengths: dict[int, list[QuestionGroup]] = defaultdict(list)
        for group in groups.values():
            lengths[len(group.ids)].append(group)
        for equal in lengths.values():
            for start in range(0, len(equal), self._batch_size):
                batch = equal[start : start + self._batch_size]
                for group, text in zip(batch, self._texts(batch), strict=True):
                    answer = self._template.clean_answer(text)
                    for question in group.questions:
                        yield ScoredAnswer(question=question, condition=condition, answer=answer)

    def _too_long(self, num_tokens: int) -> str:
        """Say that a prompt leaves no room for its answer; empty if it does."""
        context: int = self._model.language_model.config.max_position_embeddings
        if num_tokens + MAX_NEW_TOKENS <= context:
            return ""
        return (
            f"the question and its media take {num_tokens} tokens and the answer may take "
            f"{MAX_NEW_TOKENS}, but the model's context holds {context}"
        )

    @torch.inference_mode()
    def _texts(self, groups: Sequence[QuestionGroup]) -> list[str]:
        """Let the model answer a batch of prompts."""
        model, tokenizer = self._model, self._model.tokenizer
        rows, texts = [], [AnswerText(self._template.stop_texts, tokenizer) for _ in groups]
        for group, text in zip(groups, texts, strict=True):
            ids = torch.tensor([group.ids], device=model.device)
            media = torch.cat([m.tokens for m in group.media], dim=1) if group.media else None
            embeds, stop_ids = model.embed(ids, media)[0], [[tokenizer.eos_token_id]]
            # Greedy, so that two runs give the same scores.
            rows.append(Row(inputs_embeds=embeds, settings=_SETTINGS, stop_ids=stop_ids, text=text))
        for _ in generate(model.language_model, rows):
            pass
        for text in texts:
            text.finish()
        return [text.text for text in texts]


def _given(clip: Clip, condition: Condition) -> list[MediaTokens]:
    sound = [] if clip.sound is None else [clip.sound]
    given: dict[Condition, list[MediaTokens]] = {
        "withheld": [],
        "picture": [clip.picture],
        "sound": sound,
        "shuffled": [clip.shuffled],
    }
    return given.get(condition, [*sound, clip.picture])
