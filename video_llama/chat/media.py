"""Files of a chat: how they are read, what the model gets of them, and what people may look at."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from video_llama.common.io import check_file
from video_llama.config.schema import Config
from video_llama.models.settings import ModelSettings
from video_llama.models.video_llama import VideoLlama
from video_llama.processors.audio import AudioClips, AudioProcessor
from video_llama.processors.decode import DecodedFile, decode_file
from video_llama.processors.media import MediaInfo, probe
from video_llama.processors.settings import (
    AudioSettings,
    ImageEvalSettings,
    VideoEvalSettings,
    VideoSettings,
)
from video_llama.processors.worker import decode_in_worker
from video_llama.text.questions import Media, frames_message
from video_llama.types import ConfigError, MediaKind, RequestError


@dataclass(frozen=True)
class MediaProcessing:
    """How a chat reads clips, pictures and sounds."""

    video: VideoEvalSettings
    image: ImageEvalSettings
    audio: AudioSettings

    @classmethod
    def of(cls, settings: ModelSettings, cfg: Config | None) -> MediaProcessing:
        """Take what the configuration says, or the original's chat where it says nothing."""
        size = settings.image_size
        video = VideoEvalSettings(image_size=size)
        audio = AudioSettings(clips_per_video=min(8, settings.max_audio_clips))
        for entry in cfg.datasets.values() if cfg else ():
            pictures = entry.vis_processor.eval or entry.vis_processor.train
            if isinstance(pictures, VideoSettings):
                shared = {key: getattr(pictures, key) for key in vars(video) if key != "name"}
                video = VideoEvalSettings(**shared)
                if video.sampling == "headtail":  # random frames are for training
                    video = replace(video, sampling="uniform")
            audio = entry.audio_processor.eval or entry.audio_processor.train or audio
        image = ImageEvalSettings(image_size=size, mean=video.mean, std=video.std)
        return cls(video, image, audio)


Result = TypeVar("Result")

Input = Literal["spectrograms", "pixels"]
"""What a decoded file has for the encoders."""

Progress = Callable[[float, str], None]
"""Called with the share that is done, 0 to 1, and what is being done."""

_identities = count()
"""Tells every encoded medium of the process from every other."""


@dataclass(frozen=True, eq=False)
class EncodedMedia:
    """The sound or the picture of a file as the language model gets it.

    Attributes:
        media: how it appears in the prompt.
        tokens: (1, N, D_llm).
        identity: a number that nothing else encoded in this process has.
    """

    media: Media
    tokens: Tensor = field(repr=False)
    identity: int = field(default_factory=lambda: next(_identities))


@dataclass(frozen=True)
class MediaKey:
    """What a file was added as: two equal keys give the same media.

    Attributes:
        path: absolute.
        size: bytes of the file.
        changed: time of the file, in nanoseconds.
        kind: what to take it for; None: what it is.
        span: seconds where the part that is taken begins and ends; None: as configured.
    """

    path: Path
    size: int
    changed: int
    kind: MediaKind | None = None
    num_frames: int | None = None
    num_clips: int | None = None
    span: tuple[float, float | None] | None = None

    @classmethod
    def of(cls, path: str | Path, *wanted: Any) -> MediaKey:
        """Describe what stands at a path now, and what is `wanted` of it: the last four fields.

        Raises:
            MediaError: nothing that can be read stands there.
        """
        absolute = check_file(path)
        status = absolute.stat()
        return cls(absolute, status.st_size, status.st_mtime_ns, *wanted)


@dataclass(eq=False)
class MediaItem:
    """One file of a chat.

    Attributes:
        path: the file.
        kind: what it was taken for.
        sound: encoded; None if there is none or it has not been needed yet.
        picture: encoded frames; None for a sound.
        has_sound: whether the file has a sound track; None for a picture.
        sound_used: whether its sound is in the prompt.
        frames: (3, T, H, W) uint8 of what the model sees; None for sounds.
        frame_seconds: when each frame is shown.
        spectrograms: (S, 1, mel, frames) of what the model hears; None without sound.
        sound_spans: begin and end of each sound segment, in seconds.
        notice: what the user should know about the file; empty if nothing.
        sound_problem: why the sound track of a clip cannot be used; empty if it can.
        file_notice: the part of `notice` that holds with and without sound.
        sound_notice: the part of `notice` that holds with sound.
        timings: seconds spent decoding and encoding.
        key: what was wanted: file with its size and time, kind, frames and segments.
    """

    path: Path
    kind: MediaKind
    sound: EncodedMedia | None = None
    picture: EncodedMedia | None = None
    has_sound: bool | None = None
    sound_used: bool = False
    frames: Tensor | None = field(default=None, repr=False)
    frame_seconds: list[float] = field(default_factory=list)
    spectrograms: Tensor | None = field(default=None, repr=False)
    sound_spans: list[tuple[float, float]] = field(default_factory=list)
    notice: str = ""
    sound_problem: str = ""
    file_notice: str = ""
    sound_notice: str = ""
    timings: dict[str, float] = field(default_factory=lambda: {"decode": 0.0, "encode": 0.0})
    key: MediaKey | None = None

    @property
    def encoded(self) -> list[EncodedMedia]:
        """What of it is in the prompt: the sound of a clip first, then its frames."""
        both = [self.sound if self.sound_used else None, self.picture]
        return [encoded for encoded in both if encoded is not None]

    @property
    def prompt_media(self) -> list[Media]:
        """How it appears in the prompt."""
        return [encoded.media for encoded in self.encoded]

    @property
    def num_tokens(self) -> int:
        """Positions that it takes in the prompt."""
        return sum(media.num_tokens for media in self.prompt_media)

    @property
    def tensors(self) -> list[Tensor]:
        """Everything that takes memory."""
        encoded = [each.tokens for each in (self.sound, self.picture) if each is not None]
        shown = [tensor for tensor in (self.frames, self.spectrograms) if tensor is not None]
        return [*encoded, *shown]

    def frame_pictures(self) -> list[np.ndarray[Any, Any]]:
        """Return (H, W, 3) uint8 of every frame that the model sees."""
        if self.frames is None:
            return []
        return list(rearrange(self.frames, "c t h w -> t h w c").numpy())

    def spectrogram_pictures(self) -> list[np.ndarray[Any, Any]]:
        """Draw every sound segment, (mel, frames, 3) uint8: low tones below, loud is bright."""
        if self.spectrograms is None:
            return []
        return [_spectrogram_picture(segment[0]) for segment in self.spectrograms]

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the block's duration to `timings[stage]`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings[stage] += time.perf_counter() - start


_COLOURS = np.array([[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]])
"""From quiet to loud, as bright on a dark page as on a light one."""


def _spectrogram_picture(values: Tensor) -> np.ndarray[Any, Any]:
    """Draw (mel, frames) as (mel, frames, 3) uint8, low tones below, the loudest brightest."""
    cells = values.flip(0).float().numpy()
    low, high = float(cells.min()), float(cells.max())
    shares = (cells - low) / max(high - low, 1e-6) * (len(_COLOURS) - 1)
    places = np.arange(len(_COLOURS))
    channels = [np.interp(shares, places, _COLOURS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.uint8)


_MAX_ENCODED_TOGETHER = 64
"""Frames, or segments of sound, that are encoded at once."""


@dataclass
class DecodedMedia:
    """A file that has been read, waiting to be encoded.

    Attributes:
        item: of the file; gets what is encoded.
        spectrograms: (S, 1, mel, frames), if its sound is to be heard.
        pixels: (3, T, H, W), if it has pictures.
        message: sentence of the prompt about its frames.
    """

    item: MediaItem
    spectrograms: Tensor | None = field(default=None, repr=False)
    pixels: Tensor | None = field(default=None, repr=False)
    message: str = ""


def _silent(share: float, text: str) -> None:
    """Ignore progress."""


class MediaEncoder:
    """Files to tokens of the language model.

    Args:
        turn: held while they do; files are decoded outside of it.
        in_worker: decode in a process that can be replaced, so that a file which ends, hangs or
            fills its decoder costs one `MediaError`. It takes seconds to start (`start_decoding`).
    """

    def __init__(
        self,
        model: VideoLlama,
        turn: Callable[[], AbstractContextManager[None]] = nullcontext,
        *,
        in_worker: bool = True,
    ) -> None:
        self.model = model
        self.processing = MediaProcessing.of(model.settings, model.configuration)
        self._turn = turn
        self._in_worker = in_worker

    def encode(self, path: str | Path, kind: MediaKind | None = None) -> MediaItem:
        """Decode and encode a file as configured, with its sound; raises what `decode` does."""
        decoded = self.decode(path, MediaKey.of(path, kind))
        self.finish([decoded])
        return decoded.item

    def decode(
        self,
        path: str | Path,
        key: MediaKey,
        *,
        use_audio: bool = True,
        progress: Progress | None = None,
    ) -> DecodedMedia:
        """Do the half of `encode` that needs no model; several threads may decode at once.

        Raises:
            MediaError: the file cannot be used.
            RequestError: a sound for a model without an audio branch.
            ConfigError: more frames or segments than the model has positions for.
        """
        # The header first: it says whether the model can take the file at all.
        info = self._call(probe, path)
        item = MediaItem(Path(path), key.kind or info.kind, key=key)
        is_heard = self._takes_sound(item, info, use_audio)
        video = self._video_settings(key) if item.kind == "video" else self.processing.video
        audio = self._audio_processor(key) if is_heard else None
        (progress or _silent)(0.0, f"reading {item.path.name}")
        with item.timed("decode"):
            found = self._call(
                decode_file,
                path,
                item.kind,
                image=self.processing.image.build(),
                video=video.build(),
                audio=audio,
            )
        # What the worker sent is plain arrays: the model is needed from here on only.
        decoded = DecodedMedia(item)
        self._take_picture(decoded, found)
        if is_heard:
            self._take_sound(decoded, found.sound, found.notice)
        item.file_notice = f"{item.path.name}: {info.notice}" if info.notice else ""
        self._note(item, use_audio)
        return decoded

    def _call(
        self, function: Callable[..., Result], path: str | Path, *args: Any, **kwargs: Any
    ) -> Result:
        """Call a function of a file, in the worker process unless it is not wanted."""
        if self._in_worker:
            return decode_in_worker(function, path, *args, **kwargs)
        return function(path, *args, **kwargs)

    def switch_sound(self, item: MediaItem, on: bool, progress: Progress | None = None) -> None:
        """Let a clip be heard or not; its sound is read when it is first needed.

        Args:
            on: whether it is to be heard, if it has sound.
            progress: called with what is being done.

        Raises:
            MediaError: the file cannot be read any more.
        """
        can_hear = self._hears and bool(item.has_sound) and not item.sound_problem
        item.sound_used = on and can_hear
        if item.sound_used and item.sound is None:
            assert item.key is not None
            (progress or _silent)(0.0, f"reading the sound of {item.path.name}")
            audio, decoded = self._audio_processor(item.key), DecodedMedia(item)
            with item.timed("decode"):
                found = self._call(decode_file, item.path, item.kind, audio=audio)
            self._take_sound(decoded, found.sound, found.notice)
            self.finish([decoded], progress)
        self._note(item, on)

    def _note(self, item: MediaItem, wants_sound: bool) -> None:
        """Say what the user should know: of the file, and of sound that is wanted."""
        found = [item.file_notice]
        if wants_sound and item.kind != "image":
            found.append(self._sound_notice(item))
        item.notice = "; ".join(notice for notice in found if notice)

    def _sound_notice(self, item: MediaItem) -> str:
        name = item.path.name
        if not item.has_sound:
            reason = f"{name} has no sound track"
        elif not self._hears:
            reason = f"{name} has sound, but this model has no audio branch"
        elif item.sound_problem:
            reason = f"the sound of {name} cannot be used: {item.sound_problem}"
        else:
            return item.sound_notice
        return f"{reason}; the answer is from its frames only"

    def finish(self, decoded: Sequence[DecodedMedia], progress: Progress | None = None) -> None:
        """Encode files that have been read, those of one shape together.

        Args:
            decoded: get their sounds and pictures.
            progress: called with what is being done.
        """
        report = progress or _silent
        if any(entry.spectrograms is not None for entry in decoded):
            report(0.5, "listening")
        # Sounds of different lengths have different numbers of segments, and cannot be stacked.
        for entry, tokens in self._encoded(decoded, "spectrograms", self.model.encode_audio):
            entry.item.sound = EncodedMedia(Media("audio", tokens.shape[1]), tokens)
            entry.item.sound_used = True
        if any(entry.pixels is not None for entry in decoded):
            report(0.75, "looking")
        for entry, tokens in self._encoded(decoded, "pixels", self.model.encode_video):
            media = Media(entry.item.kind, tokens.shape[1], entry.message)
            entry.item.picture = EncodedMedia(media, tokens)
        report(1.0, "done")

    def _encoded(
        self, decoded: Sequence[DecodedMedia], name: Input, encode: Callable[[Tensor], Tensor]
    ) -> Iterator[tuple[DecodedMedia, Tensor]]:
        """Yield the entries that have this input, each with (1, N, D_llm), and drop the input."""
        for batch in _batches(decoded, name):
            inputs = torch.stack([getattr(entry, name) for entry in batch])
            # One turn per batch of files: answers that are being written go on between batches.
            with self._turn(), torch.inference_mode():
                start = time.perf_counter()
                tokens = encode(inputs.to(self.model.device))
                seconds = time.perf_counter() - start
            for index, entry in enumerate(batch):
                entry.item.timings["encode"] += seconds / len(batch)
                setattr(entry, name, None)
                # Copies: a slice would keep the tokens of the whole batch in memory.
                yield entry, tokens[index : index + 1].clone()

    @property
    def _hears(self) -> bool:
        return self.model.audio_branch is not None

    def _takes_sound(self, item: MediaItem, info: MediaInfo, use_audio: bool) -> bool:
        """Find whether the sound of a file is to be decoded.

        Raises:
            RequestError: it is a sound, for a model without an audio branch.
        """
        if item.kind == "image":
            return False
        item.has_sound = info.has_audio
        if item.kind == "video":
            return use_audio and self._hears and info.has_audio
        if not self._hears:
            raise RequestError(
                f"{item.path} is a sound, but this model has no audio branch; use a configuration "
                "with model.equip_audio_branch=true"
            )
        return True

    def _video_settings(self, key: MediaKey) -> VideoEvalSettings:
        video = self.processing.video
        if key.num_frames is not None:
            self._check_count("frames", key.num_frames, "max_frame_pos")
            video = replace(video, n_frms=key.num_frames)
        return video if key.span is None else replace(video, start=key.span[0], end=key.span[1])

    def _audio_processor(self, key: MediaKey) -> AudioProcessor:
        audio = self.processing.audio
        if key.num_clips is not None:
            self._check_count("segments of sound", key.num_clips, "max_audio_clips")
            audio = replace(audio, clips_per_video=key.num_clips)
        return audio.build(*(key.span or ()))

    def _check_count(self, things: str, count: int, limit_key: str) -> None:
        """Refuse what the model has no positions for, before it is decoded."""
        limit = getattr(self.model.settings, limit_key)
        if count > limit and not self.model.settings.interpolate_positions:
            raise ConfigError(
                f"{count} {things} given, but model.{limit_key} is {limit}; take fewer, or set "
                "model.interpolate_positions to true"
            )

    def _take_picture(self, decoded: DecodedMedia, found: DecodedFile) -> None:
        item = decoded.item
        if found.picture is not None:
            item.frames = _displayable(found.picture, self.processing.image)[:, None]
            decoded.pixels = rearrange(found.picture, "c h w -> c 1 h w")
        if found.clip is not None:
            item.frames, item.frame_seconds = found.clip.frames, found.clip.seconds
            decoded.pixels = found.clip.pixel_values
            decoded.message = frames_message(found.clip.seconds)

    def _take_sound(self, decoded: DecodedMedia, sound: AudioClips | None, notice: str) -> None:
        item = decoded.item
        if sound is None:  # of a clip, whose frames are good
            item.sound_used, item.sound_problem = False, notice
            return
        item.sound_notice = f"{item.path.name}: {notice}" if notice else ""
        item.spectrograms, item.sound_spans = sound.values, sound.spans
        decoded.spectrograms = sound.values


def _batches(decoded: Sequence[DecodedMedia], name: Input) -> list[list[DecodedMedia]]:
    """Group the entries that have this input by its shape, in batches of bounded size."""
    shapes: dict[torch.Size, list[DecodedMedia]] = defaultdict(list)
    for entry in decoded:
        inputs: Tensor | None = getattr(entry, name)
        if inputs is not None:
            shapes[inputs.shape].append(entry)
    batches = []
    for shape, group in shapes.items():
        pictures = shape[0] if name == "spectrograms" else shape[1]
        # Frames, not files, are what fills the memory of a GPU.
        size = max(1, _MAX_ENCODED_TOGETHER // pictures)
        batches += [group[i : i + size] for i in range(0, len(group), size)]
    return batches


def _displayable(picture: Tensor, settings: ImageEvalSettings) -> Tensor:
    """Undo the normalisation of (3, H, W), to uint8."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (settings.mean, settings.std))
    return ((picture * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
