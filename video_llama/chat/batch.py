"""Many questions answered together, each as if it were alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from video_llama.chat.engine import Chat
from video_llama.chat.media import DecodedMedia, MediaItem, MediaKey
from video_llama.chat.prompt import ChatTurn
from video_llama.chat.requests import BatchRequest, RequestMedia
from video_llama.chat.sharing import TimedLock
from video_llama.models.generation.generate import Row, generate
from video_llama.models.generation.settings import generation_settings
from video_llama.types import RequestError, VideoLlamaError

_KEPT_FILES = 64
"""Encoded files that stay for later questions."""

_FileKey = tuple[MediaKey, bool]
"""A file, and whether its sound is used."""


@dataclass
class BatchAnswer:
    """What became of a request.

    Attributes:
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


class BatchAnswerer:
    """Answers requests: files encoded together, prompts of similar length answered together."""

    def __init__(self, chat: Chat, *, batch_size: int = 8) -> None:
        self._answerer = chat.answerer
        self._encoder = chat.encoder
        self._batch_size = batch_size
        self._files: OrderedDict[_FileKey, MediaItem] = OrderedDict()

    def answer(self, requests: Sequence[BatchRequest]) -> list[BatchAnswer]:
        """Return one result per request, in their order; what is wrong with one is said there."""
        # One bad request is its own problem. What can be answered is answered.
        results = [BatchAnswer(request, error=request.error) for request in requests]
        # Files first and all together: clips of one shape share a pass of the encoders.
        files = self._read([media for request in requests for media in request.media])
        prepared: list[tuple[BatchAnswer, Row]] = []
        for result in results:
            if not result.error:
                try:
                    prepared.append((result, self._row(result, files)))
                except VideoLlamaError as error:
                    result.error = str(error)
        # Rows are padded to the longest of their batch, so neighbours should be of one length.
        prepared.sort(key=lambda pair: len(pair[1].inputs_embeds))
        for start in range(0, len(prepared), self._batch_size):
            self._answer_together(prepared[start : start + self._batch_size])
        # After the answers, which hold what they need themselves.
        while len(self._files) > _KEPT_FILES:
            self._files.popitem(last=False)
        return results

    def _read(self, files: Sequence[RequestMedia]) -> dict[RequestMedia, MediaItem | str]:
        """Encode every file once; where that fails, the result is what is wrong with it."""
        keys: dict[RequestMedia, _FileKey] = {}
        problems: dict[RequestMedia, str] = {}
        decoded: dict[_FileKey, DecodedMedia] = {}
        # Many lines of a file of questions are about the same clip.
        for file in dict.fromkeys(files):
            try:
                media_key = MediaKey.of(file.path, file.kind, file.num_frames, file.num_clips)
                key = keys[file] = media_key, file.use_audio
                if key not in self._files and key not in decoded:
                    # Decoded one by one, because the worker may die of any of them.
                    decoded[key] = self._encoder.decode(
                        file.path, media_key, use_audio=file.use_audio
                    )
            except VideoLlamaError as error:
                problems[file] = str(error)
        # Encoded together, grouped by shape.
        self._encoder.finish(list(decoded.values()))
        self._files.update({key: entry.item for key, entry in decoded.items()})
        for key in keys.values():
            if key in self._files:
                self._files.move_to_end(key)
        return {f: problems[f] if f in problems else self._files[keys[f]] for f in files}

    def _row(self, result: BatchAnswer, files: dict[RequestMedia, MediaItem | str]) -> Row:
        """Make the row of a request, and note its prompt in the result.

        Raises:
            RequestError: a file of it cannot be used, an option is wrong, or it does not fit.
        """
        request = result.request
        settings = generation_settings(request.options)
        # Where a file failed its requests fail with the same words.
        items = []
        for file in request.media:
            item = files[file]
            if isinstance(item, str):
                raise RequestError(item)
            items.append(item)
        turn = ChatTurn(request.question, tuple(items))
        prompt = self._answerer.prompts.build([turn], settings.max_new_tokens)
        result.num_prompt_tokens = len(prompt.ids)
        result.notices = list(dict.fromkeys(item.notice for item in items if item.notice))
        return self._answerer.row(prompt, settings)

    def _answer_together(self, prepared: Sequence[tuple[BatchAnswer, Row]]) -> None:
        # Stop rules, seeds and lengths are the rows' own. Nothing is left to do between the steps.
        rows = [row for _, row in prepared]
        for _ in generate(
            self._answerer.model.language_model, rows, TimedLock(self._answerer.lock)
        ):
            pass
        for result, row in prepared:
            assert row.text is not None
            row.text.finish()
            result.answer, result.finished = row.text.text, row.finished
            result.num_tokens = len(row.ids)
