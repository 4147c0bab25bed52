"""Messages with files, as evaluation harnesses have them, answered in batches. Knows no harness."""

from __future__ import annotations

import tempfile
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import video_llama.common.compat

import av
import numpy as np
import torch
from PIL import Image

from video_llama.chat.media import EncodedMedia, MediaEncoder, MediaItem, MediaKey
from video_llama.models.generation.generate import AnswerText, Row, generate
from video_llama.models.generation.settings import GenerationSettings
from video_llama.models.video_llama import VideoLlama
from video_llama.text.templates import TEMPLATES, Turn
from video_llama.types import MediaKind, RequestError, VideoLlamaError

_KEPT_ITEMS = 256
"""Files whose tokens are kept: the questions about a clip usually follow each other."""
_ROUND = 16
"""Batches whose prompts are made before they are sorted by length."""


@dataclass(frozen=True)
class HarnessRequest:
    """A question of a harness.

    Attributes:
        messages: role and content each; content is a list of text, image, video and audio, whose
            `url` is a path, a picture of PIL, or samples with their rate; clips may have
            `start_time` and `end_time` in seconds.
        options: of transformers' `generate`, and `until`, texts that end the answer.
    """

    messages: Sequence[Mapping[str, Any]]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class HarnessAnswer:
    """What came of it; `error` says why there is no text."""

    text: str = ""
    num_tokens: int = 0
    error: str = ""


@dataclass(frozen=True)
class _OpenPrompt:
    ids: list[int]
    media: list[EncodedMedia]
    settings: GenerationSettings
    until: list[str]


class MessageAnswerer:
    """Answers requests; what one of them lacks is its error, and no other's.

    Args:
        model: in eval mode.
        num_frames: of a clip; None: as configured.
        num_clips: segments of a sound; None: as configured.
        use_audio: whether clips are heard.
        batch_size: answers at once.
        in_worker: decode files in a process that can be replaced.
    """

    def __init__(
        self,
        model: VideoLlama,
        *,
        num_frames: int | None = None,
        num_clips: int | None = None,
        use_audio: bool = True,
        batch_size: int = 1,
        in_worker: bool = True,
    ) -> None:
        self.model = model
        self.encoder = MediaEncoder(model, in_worker=in_worker)
        self._num_frames, self._num_clips, self._use_audio = num_frames, num_clips, use_audio
        self._batch_size = batch_size
        self._template = TEMPLATES.get(model.settings.template)
        self._kept: OrderedDict[MediaKey, MediaItem] = OrderedDict()

    @property
    def num_frames(self) -> int:
        """Frames of a clip."""
        return self._num_frames or self.encoder.processing.video.n_frms

    @property
    def num_clips(self) -> int:
        """Segments of a sound."""
        return self._num_clips or self.encoder.processing.audio.clips_per_video

    def answer(self, requests: Sequence[HarnessRequest]) -> Iterator[tuple[int, HarnessAnswer]]:
        """Yield the place and the answer of each request, not in their order."""
        size = _ROUND * self._batch_size
        for start in range(0, len(requests), size):
            # Prompts of one length are answered together: they need no padding, and so no mask.
            lengths: dict[int, list[tuple[int, _OpenPrompt]]] = defaultdict(list)
            for place in range(start, min(start + size, len(requests))):
                try:
                    prompt = self._prompt(requests[place], place)
                except VideoLlamaError as error:
                    yield place, HarnessAnswer(error=str(error))
                else:
                    lengths[len(prompt.ids)].append((place, prompt))
            for equal in lengths.values():
                for first in range(0, len(equal), self._batch_size):
                    batch = equal[first : first + self._batch_size]
                    found = self._generate([prompt for _, prompt in batch])
                    yield from zip([place for place, _ in batch], found, strict=True)

    @torch.inference_mode()
    def _generate(self, prompts: Sequence[_OpenPrompt]) -> list[HarnessAnswer]:
        model, template = self.model, self._template
        rows = []
        for prompt in prompts:
            ids = torch.tensor([prompt.ids], device=model.device)
            tokens = [each.tokens for each in prompt.media]
            row = Row(
                inputs_embeds=model.embed(ids, torch.cat(tokens, dim=1) if tokens else None)[0],
                settings=prompt.settings,
                stop_ids=template.stop_ids(model.tokenizer),
                text=AnswerText(template.stop_texts, model.tokenizer),
            )
            rows.append(row)
        for _ in generate(model.language_model, rows):
            pass
        answers = []
        for prompt, row in zip(prompts, rows, strict=True):
            assert row.text is not None
            row.text.finish()
            text = template.clean_answer(row.text.text)
            for mark in prompt.until:
                text = text.split(mark, 1)[0]
            answers.append(HarnessAnswer(text.strip(), len(row.ids)))
        return answers

    def _prompt(self, request: HarnessRequest, seed: int) -> _OpenPrompt:
        system, turns, media = self._turns(request.messages)
        ids = self._template.chat_ids(turns, self.model.tokenizer, system=system)
        context: int = self.model.language_model.config.max_position_embeddings
        if len(ids) >= context:
            raise RequestError(
                f"the question and its media take {len(ids)} tokens, but the model's context "
                f"holds {context}"
            )
        until = request.options.get("until") or []
        # Tasks ask for answers of thousands of tokens, which none of them needs.
        settings = _settings(request.options, room=context - len(ids), seed=seed)
        return _OpenPrompt(ids, media, settings, [until] if isinstance(until, str) else list(until))

    def _turns(
        self, messages: Sequence[Mapping[str, Any]]
    ) -> tuple[str | None, list[Turn], list[EncodedMedia]]:
        system: str | None = None
        turns: list[Turn] = []
        media: list[EncodedMedia] = []
        for message in messages:
            role, content = message["role"], message["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            text = "".join(part["text"] for part in parts if part["type"] == "text")
            if role == "system":
                system = text
            elif role == "assistant" and turns and turns[-1].answer is None:
                turns[-1] = Turn(turns[-1].question, turns[-1].media, text)
            elif role == "user":
                files = [self._item(part) for part in parts if part["type"] != "text"]
                found = [encoded for item in files for encoded in item.encoded]
                media += found
                turns.append(Turn(text, tuple(each.media for each in found)))
            else:
                raise RequestError(f"role {role!r} given where it has no place")
        if not turns or turns[-1].answer is not None:
            raise RequestError("the last message is not the user's: there is nothing to answer")
        return system, turns, media

    def _item(self, part: Mapping[str, Any]) -> MediaItem:
        kind, url = part["type"], part["url"]
        if kind not in ("image", "video", "audio"):
            raise RequestError(f"a part of type {kind!r} given; text or a medium expected")
        span = _span(part, "start_time", "end_time")
        if isinstance(url, Mapping) and "array" not in url:  # a path with what is taken of it
            span = _span(url, "video_start", "video_end")
            url = url.get("url") or url.get("path")
        if isinstance(url, str | Path):
            return self._encoded(Path(url), kind, span)
        # Decoded by the harness. The processors read files, and do with one as they always do.
        with tempfile.TemporaryDirectory() as folder:
            return self._encoded(_written(url, Path(folder)), kind, span, keep=False)

    def _encoded(
        self,
        path: Path,
        kind: MediaKind,
        span: tuple[float, float | None] | None,
        *,
        keep: bool = True,
    ) -> MediaItem:
        key = MediaKey.of(path, kind, self._num_frames, self._num_clips, span)
        item = self._kept.get(key)
        if item is None:
            decoded = self.encoder.decode(path, key, use_audio=self._use_audio)
            self.encoder.finish([decoded])
            item = decoded.item
            # What people would look at is not needed, and is larger than the tokens.
            item.frames = item.spectrograms = None
        if keep:
            self._kept[key] = item
            self._kept.move_to_end(key)
            while len(self._kept) > _KEPT_ITEMS:
                self._kept.popitem(last=False)
        return item


def _span(values: Mapping[str, Any], start: str, end: str) -> tuple[float, float | None] | None:
    given = values.get(start), values.get(end)
    if given == (None, None):
        return None
    return float(given[0] or 0.0), None if given[1] is None else float(given[1])


def _settings(options: Mapping[str, Any], *, room: int, seed: int) -> GenerationSettings:
    """Make settings of the options of transformers' `generate`; greedy unless they sample."""
    temperature = float(options.get("temperature") or 0.0)
    samples = bool(options.get("do_sample", temperature > 0)) and options.get("temperature") != 0
    wanted = int(options.get("max_new_tokens") or GenerationSettings.max_new_tokens)
    return GenerationSettings(
        max_new_tokens=min(wanted, room),
        min_new_tokens=int(options.get("min_new_tokens") or 0),
        temperature=(temperature or 1.0) if samples else 0.0,
        top_p=float(options.get("top_p") or 1.0),
        num_beams=int(options.get("num_beams") or 1),
        repetition_penalty=float(options.get("repetition_penalty") or 1.0),
        length_penalty=float(options.get("length_penalty") or 1.0),
        seed=seed,
        compiled=False,
    )


def _written(medium: Any, folder: Path) -> Path:
    """Write a picture or a sound that a harness has decoded, without loss."""
    if isinstance(medium, Image.Image):
        path = folder / "picture.png"
        medium.convert("RGB").save(path)
        return path
    try:
        samples, rate = np.asarray(medium["array"], np.float32), int(medium["sampling_rate"])
    except (TypeError, KeyError, ValueError) as error:
        raise RequestError(
            f"a medium of type {type(medium).__name__} given; a path, a picture of PIL, or array "
            "and sampling_rate of a sound expected"
        ) from error
    path = folder / "sound.wav"
    # (channels, samples), at most two of them; one channel may come without its dimension.
    channels = np.atleast_2d(samples)[:2]
    layout = "mono" if len(channels) == 1 else "stereo"
    frame = av.AudioFrame.from_ndarray(channels.T.reshape(1, -1), format="flt", layout=layout)
    frame.sample_rate = rate
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_f32le", rate=rate, layout=layout)
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return path
