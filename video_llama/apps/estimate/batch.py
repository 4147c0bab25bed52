"""What a step and a question consist of: frames, sounds, tokens. Torch-free.

Lengths of texts are not known before annotations are read, so typical ones are assumed; the
command's `--text-tokens` replaces them.
"""

from __future__ import annotations

from dataclasses import dataclass

from video_llama.config.schema import Config
from video_llama.datasets.base import DatasetSettings
from video_llama.processors.settings import AudioSettings, PictureSettings, VideoSettings
from video_llama.types import ConfigError

CAPTION_TOKENS = 24
"""Assumed length of a short caption, padded to the longest of its batch."""
LONG_CAPTION_TOKENS = 110
"""The same of a caption of stage 2, which describes in detail."""
CONVERSATION_TOKENS = 320
"""The same of a conversation, its questions included."""
PROMPT_TOKENS = 36
"""Assumed tokens of the text around the media of a caption prompt."""
QUESTION_TOKENS = 64
"""Assumed tokens of a chat's template and question."""
ANSWER_SHARE = 0.7
"""Assumed part of a conversation's tokens that has labels."""

CORE_SECONDS = {"clip": 0.28, "picture": 0.012, "sound": 0.12}
"""Processor seconds to read an item and transform it. Clips: `benchmarks/results/data.json`
(596 x 336, 25 frames a second, 12 s, 8 frames taken); pictures of 640 x 480 and sounds of 10 s:
measured in the same way."""


@dataclass(frozen=True)
class Item:
    """What one row of a batch is made of.

    Attributes:
        name: the data set.
        share: of the batches, 0 to 1.
        frames: frames of a clip, 1 for a picture, 0 for a sound.
        segments: segments of sound.
        media_tokens: positions of the language model that the media take.
        text_tokens: all other positions.
        labelled: positions with a loss.
        core_seconds: of a processor to read it.
    """

    name: str
    share: float
    frames: int
    segments: int
    media_tokens: int
    text_tokens: int
    labelled: int
    core_seconds: float

    @property
    def length(self) -> int:
        """Positions of the language model."""
        return self.media_tokens + self.text_tokens


def training_items(cfg: Config, text_tokens: int | None = None) -> list[Item]:
    """A typical item of each data set.

    Args:
        cfg: with a branch that trains.
        text_tokens: tokens of a row beside its media; None: as assumed.

    Raises:
        ConfigError: no data set.
    """
    if not cfg.datasets:
        raise ConfigError("datasets: empty; name the data sets to train on")
    ratios = {name: entry.sample_ratio for name, entry in cfg.datasets.items()}
    total = sum(1.0 if ratio is None else ratio for ratio in ratios.values())
    return [
        _item(cfg, name, (1.0 if ratios[name] is None else ratios[name] or 0) / total, text_tokens)
        for name in cfg.datasets
    ]


def _item(cfg: Config, name: str, share: float, text_tokens: int | None) -> Item:
    entry, audio = cfg.datasets[name], cfg.model.trained_branch == "audio"
    frames, segments = _frames(entry), 0
    if entry.data_type.startswith("audio"):
        frames, segments = 0, _segments(entry.audio_processor.train)
    text, labelled = _text(cfg, entry, text_tokens)
    return Item(
        name=name,
        share=share,
        frames=frames,
        segments=segments,
        media_tokens=cfg.model.num_audio_query_token if audio else cfg.model.num_video_query_token,
        text_tokens=text,
        labelled=labelled,
        core_seconds=CORE_SECONDS["sound" if segments else "clip" if frames > 1 else "picture"],
    )


def _frames(entry: DatasetSettings) -> int:
    pictures: PictureSettings | None = entry.vis_processor.train
    clip = entry.data_type.startswith("video") and isinstance(pictures, VideoSettings)
    return pictures.n_frms if clip and isinstance(pictures, VideoSettings) else 1


def _segments(sound: AudioSettings | None) -> int:
    return sound.clips_per_video if sound is not None else 0


def _text(cfg: Config, entry: DatasetSettings, given: int | None) -> tuple[int, int]:
    """Tokens of text and those with labels."""
    if entry.has_conversations:
        most = entry.max_length - (entry.num_video_query_token or 0)
        tokens = given or min(CONVERSATION_TOKENS, most)
        return tokens, max(1, round(ANSWER_SHARE * tokens))
    around = 1 + (PROMPT_TOKENS if cfg.model.prompt_path else 0)
    typical = LONG_CAPTION_TOKENS if cfg.model.prompt_path else CAPTION_TOKENS
    caption = max(1, (given or around + min(typical, cfg.model.max_txt_len)) - around)
    return around + caption, caption


def question(cfg: Config, text_tokens: int | None = None) -> Item:
    """What a chat is asked about: the first data set's clip, with sound where it is heard.

    Args:
        cfg: any configuration.
        text_tokens: tokens of the prompt beside its media; None: as assumed.
    """
    entry = next(iter(cfg.datasets.values()), None)
    pictures = entry.vis_processor.train if entry else None
    frames = pictures.n_frms if isinstance(pictures, VideoSettings) else 8
    segments, tokens = 0, cfg.model.num_video_query_token
    if cfg.model.equip_audio_branch:
        sound = entry.audio_processor.train if entry else None
        segments = _segments(sound) or cfg.model.max_audio_clips
        tokens += cfg.model.num_audio_query_token
    seconds = CORE_SECONDS["clip"] + (CORE_SECONDS["sound"] if segments else 0)
    text = text_tokens or QUESTION_TOKENS
    return Item("question", 1.0, frames, segments, tokens, text, 0, seconds)
