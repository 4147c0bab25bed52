"""Many questions answered together, each as if it were alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from video_llama.chat.answer import AnswerText, embed_prompt, generation_settings
from video_llama.chat.media import DecodedItem, MediaItem, MediaSource
from video_llama.chat.prompt import AskedTurn, Prompt
from video_llama.chat.requests import BatchRequest, RequestMedia
from video_llama.chat.sharing import SharedPace
from video_llama.models.generation.generate import GenerationSettings, generate, generate_batch
from video_llama.types import RequestError, VideoLlamaError

if TYPE_CHECKING:
    from video_llama.chat.engine import Chat

_KEPT_FILES = 64
"""Encoded files that stay for later questions."""

Key = tuple[MediaSource, bool]


@dataclass
class BatchAnswer:
    """What became of a request.

    Attributes:
        request: it.
        answer: text; None where there is an error.
        error: one line.
        finished: whether the model ended the answer, as opposed to its limit.
        num_prompt_tokens: length of the prompt, media included.
        num_tokens: length of the answer, stop mark included.
        notices: what the user should know.
    """

    request: BatchRequest
    answer: str | None = None
    error: str = ""
    finished: bool = False
    num_prompt_tokens: int = 0
    num_tokens: int = 0
    notices: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Asked:
    """A request with everything that the language model needs."""

    result: BatchAnswer
    prompt: Prompt
    settings: GenerationSettings


class BatchAnswerer:
    """Answers requests: files encoded together, prompts of similar length answered together.

    Args:
        chat: whose model answers.
        batch_size: most answers at once.
    """

    def __init__(self, chat: Chat, *, batch_size: int = 8) -> None:
        self._chat = chat
        self._batch_size = batch_size
        self._files: OrderedDict[Key, MediaItem] = OrderedDict()

    def answer(self, requests: Sequence[BatchRequest]) -> list[BatchAnswer]:
        """One result per request, in their order; what is wrong with one is said there."""
        results = [BatchAnswer(request, error=request.error) for request in requests]
        files = self._read([media for request in requests for media in request.media])
        asked = []
        for result in results:
            if not result.error:
                try:
                    asked.append(self._asked(result, files))
                except VideoLlamaError as error:
                    result.error = str(error)
        beams = [entry for entry in asked if entry.settings.num_beams > 1]
        plain = [entry for entry in asked if entry.settings.num_beams == 1]
        plain.sort(key=lambda entry: len(entry.prompt.ids))
        for start in range(0, len(plain), self._batch_size):
            self._answer_together(plain[start : start + self._batch_size])
        for entry in beams:
            self._answer_alone(entry)
        while len(self._files) > _KEPT_FILES:
            self._files.popitem(last=False)
        return results

    def _read(self, files: Sequence[RequestMedia]) -> dict[RequestMedia, MediaItem | str]:
        """What is encoded of each file, or what is wrong with it."""
        keys: dict[RequestMedia, Key] = {}
        problems: dict[RequestMedia, str] = {}
        decoded: dict[Key, DecodedItem] = {}
        for file in dict.fromkeys(files):
            try:
                source = MediaSource.of(file.path, file.kind, file.num_frames, file.num_clips)
                key = keys[file] = source, file.use_audio
                if key not in self._files and key not in decoded:
                    decoded[key] = self._chat.encoder.decode(
                        file.path, source, use_audio=file.use_audio
                    )
            except VideoLlamaError as error:
                problems[file] = str(error)
        self._chat.encoder.finish(list(decoded.values()))
        self._files.update({key: entry.item for key, entry in decoded.items()})
        for key in keys.values():
            if key in self._files:
                self._files.move_to_end(key)
        return {f: problems[f] if f in problems else self._files[keys[f]] for f in files}

    def _asked(self, result: BatchAnswer, files: dict[RequestMedia, MediaItem | str]) -> _Asked:
        request = result.request
        settings = generation_settings(request.options)
        items = []
        for file in request.media:
            item = files[file]
            if isinstance(item, str):
                raise RequestError(item)
            items.append(item)
        turn = AskedTurn(request.question, tuple(items))
        prompt = self._chat.prompts.build([turn], settings.max_new_tokens)
        result.num_prompt_tokens = len(prompt.ids)
        result.notices = list(dict.fromkeys(item.notice for item in items if item.notice))
        return _Asked(result, prompt, settings)

    def _answer_together(self, asked: Sequence[_Asked]) -> None:
        texts = [self._text() for _ in asked]

        def ended(row: int, token: int) -> bool:
            texts[row].push(token)
            return texts[row].finished

        rows = generate_batch(
            self._chat.model.language_model,
            [embed_prompt(self._chat.model, a.prompt.ids, a.prompt.media)[0] for a in asked],
            [entry.settings for entry in asked],
            self._stop_ids,
            ended,
            SharedPace(self._chat.lock),
        )
        for entry, text, ids in zip(asked, texts, rows, strict=True):
            _note(entry.result, text, len(ids))

    def _answer_alone(self, entry: _Asked) -> None:
        model, text, count = self._chat.model, self._text(), 0
        embeds = embed_prompt(model, entry.prompt.ids, entry.prompt.media)
        pace = SharedPace(self._chat.lock)
        for token in generate(model.language_model, embeds, entry.settings, self._stop_ids, pace):
            text.push(token)
            count += 1
            if text.finished:
                break
        _note(entry.result, text, count)

    def _text(self) -> AnswerText:
        return AnswerText(self._chat.template, self._chat.model.tokenizer)

    @property
    def _stop_ids(self) -> list[list[int]]:
        return self._chat.template.stop_ids(self._chat.model.tokenizer)


def _note(result: BatchAnswer, text: AnswerText, num_tokens: int) -> None:
    text.finish()
    result.answer, result.finished, result.num_tokens = text.said, text.finished, num_tokens
