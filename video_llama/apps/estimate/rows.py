"""What batches and questions consist of: sizes from the configuration, typical lengths of texts."""

from __future__ import annotations

from dataclasses import dataclass

from video_llama.apps.estimate.hardware import FIGURES
from video_llama.config.schema import Config
from video_llama.datasets.base import DatasetSettings
from video_llama.processors.settings import AudioSettings, PictureSettings, VideoSettings
from video_llama.types import ConfigError

TOKENS, CORE_SECONDS = FIGURES["tokens"], FIGURES["core_seconds"]


@dataclass(frozen=True)
class BatchRow:
    """What one row of a batch is made of.

    Attributes:
        name: the data set.
        share: of the batches, 0 to 1.
        frames: frames of a clip, 1 for a picture, 0 for a sound.
        segments: segments of sound.
        media_tokens: positions of the language model that the media take.
        text_tokens: all other positions.
        labelled: positions with a loss.
        core_seconds: seconds of one processor core to read it.
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


def training_rows(cfg: Config, text_tokens: int | None = None) -> list[BatchRow]:
    """Describe a typical row of each data set, with so many tokens beside its media if given.

    Raises:
        ConfigError: no data set.
    """
    if not cfg.datasets:
        raise ConfigError("datasets: empty; name the data sets to train on")
    # As the loader deals them: a data set without a ratio counts as one.
    ratios = [entry.sample_ratio for entry in cfg.datasets.values()]
    shares = [1.0 if ratio is None else ratio for ratio in ratios]
    audio = cfg.model.trained_branch == "audio"
    media = cfg.model.num_audio_query_token if audio else cfg.model.num_video_query_token
    rows = []
    for share, (name, entry) in zip(shares, cfg.datasets.items(), strict=True):
        frames, segments = 1, 0
        if entry.data_type.startswith("audio"):
            frames, segments = 0, _segments(entry.audio_processor.train)
        elif entry.data_type.startswith("video"):
            frames = _frames(entry.vis_processor.train, otherwise=1)
        text, labelled = _text(cfg, entry, text_tokens)
        seconds = CORE_SECONDS["sound" if segments else "clip" if frames > 1 else "picture"]
        share /= sum(shares)
        rows.append(BatchRow(name, share, frames, segments, media, text, labelled, seconds))
    return rows


def question_row(cfg: Config, text_tokens: int | None = None) -> BatchRow:
    """Describe what a chat is asked about: the first data set's clip, with sound if it is heard."""
    entry = next(iter(cfg.datasets.values()), None)
    frames = _frames(entry.vis_processor.train if entry else None, otherwise=8)
    segments, tokens, seconds = 0, cfg.model.num_video_query_token, CORE_SECONDS["clip"]
    if cfg.model.equip_audio_branch:
        sound = entry.audio_processor.train if entry else None
        segments = _segments(sound) or cfg.model.max_audio_clips
        tokens += cfg.model.num_audio_query_token
        seconds += CORE_SECONDS["sound"]
    text = text_tokens or TOKENS["question"]
    return BatchRow("question", 1.0, frames, segments, tokens, text, 0, seconds)


def _frames(pictures: PictureSettings | None, *, otherwise: int) -> int:
    return pictures.n_frms if isinstance(pictures, VideoSettings) else otherwise


def _segments(sound: AudioSettings | None) -> int:
    return sound.clips_per_video if sound is not None else 0


def _text(cfg: Config, entry: DatasetSettings, given: int | None) -> tuple[int, int]:
    """Return the tokens of text and those with labels."""
    if entry.has_conversations:
        most = entry.max_length - (entry.num_video_query_token or 0)
        tokens = given or min(TOKENS["conversation"], most)
        return tokens, max(1, round(TOKENS["answer_share"] * tokens))
    # A caption without a prompt begins with its mark of the beginning alone.
    around = 1 + (TOKENS["prompt"] if cfg.model.prompt_path else 0)
    typical = TOKENS["long_caption" if cfg.model.prompt_path else "caption"]
    caption = max(1, (given or around + min(typical, cfg.model.max_txt_len)) - around)
    return around + caption, caption
