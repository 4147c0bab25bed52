"""Features of the clips that models are scored on, computed once by the frozen encoders.

The trained branches of any number of models read them from a file instead of from the encoders.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from video_llama.apps.evaluate.examine import Clip, MediaTokens
from video_llama.chat.media import MediaEncoder, MediaKey
from video_llama.common.io import atomic_write
from video_llama.models.video_llama import VideoLlama
from video_llama.text.questions import Media


@dataclass(frozen=True)
class EncodedClip:
    """A clip as the trained branches get it."""

    segments: Tensor | None
    """(1, S, 1, D) of `VideoLlama.encode_segments`; None: no sound."""
    frames: Tensor
    """(1, T, Q, D) of `VideoLlama.encode_frames`."""
    message: str
    """Text about the frames in the prompt."""


@torch.inference_mode()
def encode_clips(model: VideoLlama, paths: Iterable[Path], file: Path) -> None:
    """Encode clips with the model's frozen encoders and keep the result in `file`.

    Raises:
        MediaError: a clip cannot be used.
    """
    encoder = MediaEncoder(model)
    kept: dict[str, dict[str, Tensor | str | None]] = {}
    for path in paths:
        # As the chat decodes it, so that the scores are those of the product.
        decoded = encoder.decode(path, MediaKey.of(path, "video", None, None))
        segments, pixels = None, decoded.pixels
        assert pixels is not None, "a clip has frames"
        if decoded.spectrograms is not None:
            segments = model.encode_segments(decoded.spectrograms[None], "audio")
        frames = model.encode_frames(pixels[None])
        kept[str(path)] = asdict(EncodedClip(segments, frames, decoded.message))
    with atomic_write(file) as temporary:
        torch.save(kept, temporary)


def read_clips(file: Path) -> dict[Path, EncodedClip]:
    """Read the file of `encode_clips`."""
    kept = torch.load(file, weights_only=True)
    return {Path(path): EncodedClip(**values) for path, values in kept.items()}


@torch.inference_mode()
def clip_of(encoded: EncodedClip, model: VideoLlama, random: torch.Generator) -> Clip:
    """Make of features a clip as `Examiner.read` does.

    Args:
        encoded: by the frozen parts that the model has.
        model: whose branches read the features.
        random: chooses the order of shuffled frames.
    """
    sound = None
    if encoded.segments is not None:
        tokens = model.temporal_audio(encoded.segments)
        sound = MediaTokens(Media("audio", tokens.shape[1]), tokens)
    # Frames are shuffled before the branch reads them; the frozen encoders see each alone.
    order = torch.randperm(encoded.frames.shape[1], generator=random)
    picture, shuffled = (
        model.temporal_video(frames) for frames in (encoded.frames, encoded.frames[:, order])
    )
    media = Media("video", picture.shape[1], encoded.message)
    return Clip(sound, MediaTokens(media, picture), MediaTokens(media, shuffled))
