"""The whole model: frozen encoders and language model, and the trained branches between them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import video_llama.common.compat

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from video_llama.models.audio_encoder import ImageBind, Modality
from video_llama.models.language_model import causal_loss, embed_tokens
from video_llama.models.precision import Precision
from video_llama.models.qformer import (
    FrameQFormer,
    TemporalQFormer,
    audio_branch,
    frame_qformer,
    video_branch,
)
from video_llama.models.settings import ModelSettings
from video_llama.models.vision_encoder import VisionEncoder
from video_llama.models.weights.names import original_name, trainable_prefixes
from video_llama.models.weights.report import LoadReport
from video_llama.text.captions import caption_inputs
from video_llama.types import IMAGE_PLACEHOLDER, Batch, CaptionBatch, ConfigError, ModelOutput

NO_AUDIO_BRANCH = "this model has no audio branch; set model.equip_audio_branch=true"


class VideoLlama(nn.Module):
    """Video-LLaMA: a vision and an audio branch in front of a frozen LLaMA.

    One list, `trainable_prefixes`, drives gradients, training mode, optimiser groups and
    checkpoints. `original_name` maps the parameter names to those of the released files.

    Source: Video-LLaMA (arXiv 2306.02858).

    Args:
        settings: the model section of the configuration.
        tokenizer: its tokenizer; None for a model of shapes only.
        device_type: where the encoders will run, which decides their precision.

    Attributes:
        load_reports: what each weight file brought.
        random_modules: the parts that no file has filled.
        configuration: the whole configuration that it was built from, which tells a chat how to
            read media; None for a model built from `settings` alone.
    """

    def __init__(
        self,
        settings: ModelSettings,
        *,
        language_model: LlamaForCausalLM,
        tokenizer: Any,
        device_type: str,
    ) -> None:
        super().__init__()
        # The names of the parts are those of the key map, `weights/names.py`.
        self.settings = settings
        self.tokenizer = tokenizer
        self.load_reports: list[LoadReport] = []
        self.random_modules: list[str] = []
        self.configuration: Any = None
        # A part that is not built is None: training the audio branch needs no vision encoder.
        self.language_model = language_model
        self.vision_encoder: VisionEncoder | None = VisionEncoder(settings)
        self.frame_qformer: FrameQFormer | None = frame_qformer(settings)
        self.video_branch = video_branch(settings, language_model.config.hidden_size)
        self.audio_encoder: ImageBind | None = None
        self.audio_branch: TemporalQFormer | None = None
        if settings.equip_audio_branch:
            self.audio_encoder = ImageBind(settings.imagebind_config)
            self.audio_branch = audio_branch(settings, language_model.config.hidden_size)
        self._freeze()
        self.set_precisions(device_type)

    def _freeze(self) -> None:
        # By names, because one module may hold what trains and what does not.
        trainable = trainable_prefixes(self.settings)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(original_name(name).startswith(trainable))
        self.eval()

    def set_precisions(self, device_type: str) -> None:
        """Give the frozen encoders the number types of the settings on a kind of device."""
        # A part that trains keeps fp32 weights: the runner's autocast lowers its arithmetic.
        vit_precision = self.settings.vit_precision if self.settings.freeze_vit else "fp32"
        self.vision_precision = Precision.named(vit_precision, device_type)
        if self.vision_encoder is not None:
            self.vision_encoder.set_precision(self.vision_precision)
        if self.audio_encoder is not None:
            name = self.settings.imagebind_precision
            self.audio_encoder.set_precision(Precision.named(name, device_type))

    def train(self, mode: bool = True) -> VideoLlama:
        """Set training mode for the trainable parts; frozen ones stay in eval mode."""
        _set_training(self, mode)
        return self

    def trainable_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield name (the original's state-dict key) and parameter of everything with gradients."""
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                yield original_name(name), parameter

    @property
    def device(self) -> torch.device:
        """The device that inputs go to."""
        return self.video_branch.proj.weight.device

    def encode_video(self, video: Tensor) -> Tensor:
        """Encode clips to tokens of the language model.

        Args:
            video: (B, 3, T, H, W) normalised frames; T is 1 for a picture.

        Returns:
            (B, num_video_query_token, D_llm).

        Raises:
            ConfigError: more frames than `max_frame_pos`.
        """
        return self.temporal_video(self.encode_frames(video))

    def encode_frames(self, video: Tensor) -> Tensor:
        """Run the frozen half of the video branch, which treats each frame on its own.

        Returns:
            (B, T, num_query_token, hidden_size), of the input of `encode_video`.
        """
        if self.vision_encoder is None or self.frame_qformer is None:
            raise ConfigError(
                "this model has no vision encoder, because it was built to train the audio branch "
                "without one; give model.vit_ckpt and model.q_former_model"
            )
        _check_dims(video, "video (B, 3, T, H, W)")
        # All frames of all clips are one batch of pictures. Gradients are kept only where one of
        # the two encoders trains; each computes in its own precision, whatever the caller's.
        frames = rearrange(video, "b c t h w -> (b t) c h w")
        trains = not (self.settings.freeze_vit and self.settings.freeze_qformer)
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            with torch.autocast(frames.device.type, enabled=False):
                patches = self.vision_encoder(frames)
            with self.vision_precision.autocast():
                queries = self.frame_qformer(patches)
        return cast(Tensor, queries.unflatten(0, (len(video), -1)))

    def temporal_video(self, frame_queries: Tensor) -> Tensor:
        """Run the trained half of the video branch: what `encode_frames` returns to tokens."""
        return cast(Tensor, self.video_branch(frame_queries))

    def encode_audio(self, audio: Tensor, modality: Modality = "audio") -> Tensor:
        """Encode sound, or the pictures the audio branch is trained on, to tokens of the LLM.

        Args:
            audio: "audio": (B, S, 1, mel, frames) spectrograms of S clips; "vision":
                (B, T, 3, H, W) normalised frames.
            modality: which of ImageBind's towers reads it.

        Returns:
            (B, num_audio_query_token, D_llm).

        Raises:
            ConfigError: no audio branch, or more clips than `max_audio_clips`.
        """
        return self.temporal_audio(self.encode_segments(audio, modality))

    def encode_segments(self, audio: Tensor, modality: Modality) -> Tensor:
        """Run the frozen half of the audio branch: inputs of `encode_audio` to (B, S, 1, D)."""
        if self.audio_encoder is None:
            raise ConfigError(NO_AUDIO_BRANCH)
        _check_dims(audio, "audio (B, S, 1, mel, frames) or frames (B, T, 3, H, W)")
        # ImageBind never trains, and computes in its own precision, whatever the caller's autocast.
        with torch.no_grad(), torch.autocast(audio.device.type, enabled=False):
            embeddings: Tensor = self.audio_encoder(audio, modality)
            if self.settings.audio_feature_norm == "unit":
                embeddings = F.normalize(embeddings, dim=-1)
        return rearrange(embeddings, "b s d -> b s 1 d")

    def temporal_audio(self, segments: Tensor) -> Tensor:
        """Run the trained half of the audio branch: (B, S, 1, D) to tokens as in `encode_audio`."""
        if self.audio_branch is None:
            raise ConfigError(NO_AUDIO_BRANCH)
        return cast(Tensor, self.audio_branch(segments))

    def forward(self, batch: Batch) -> ModelOutput:
        """Compute the training loss of a batch.

        The media go through the branch that trains, through the video branch if none does.

        Raises:
            ValueError: placeholders and media do not match, or no token has a label.
        """
        media = self.media_tokens(batch)
        # The media come first: their number of tokens says how many places the text keeps.
        input_ids, labels, mask = self.token_sequences(batch, media.shape[1])
        embeddings = self.embed(input_ids, media)
        loss, num_tokens = causal_loss(self.language_model, embeddings, labels, mask)
        return ModelOutput(loss=loss, num_tokens=num_tokens)

    def token_sequences(self, batch: Batch, num_media_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """Tokenise a batch: input_ids with places for media, labels, attention_mask (B, L)."""
        if not isinstance(batch, CaptionBatch):
            return batch.input_ids, batch.labels, batch.attention_mask
        return caption_inputs(
            self.tokenizer,
            batch.captions,
            prompt=batch.prompt,
            num_media_tokens=num_media_tokens,
            end_sym=self.settings.end_sym,
            max_txt_len=self.settings.max_txt_len,
        )

    def embed(self, input_ids: Tensor, media: Tensor | None) -> Tensor:
        """Embed a token sequence with its media in place.

        Args:
            input_ids: (B, L); `<ImageHere>` marks the media positions.
            media: (B, N, D_llm), all media of a row in the order of its text, or None.

        Returns:
            (B, L, D_llm) in the language model's precision.
        """
        token_id = self.media_token_id
        # <ImageHere> has no row in the embedding table: the vocabulary was never enlarged.
        text = embed_tokens(self.language_model, input_ids.masked_fill(input_ids == token_id, 0))
        return text if media is None else splice(text, input_ids, media, token_id)

    @property
    def media_token_id(self) -> int:
        """Id of `<ImageHere>`."""
        return int(self.tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER))

    def media_tokens(self, batch: Batch) -> Tensor:
        """Encode the media of a batch, through the branch that trains, to (B, N, D_llm)."""
        features = self.frozen_features(batch) if batch.features is None else batch.features
        uses_audio = batch.audio_values is not None or self.settings.trained_branch == "audio"
        encode = self.temporal_audio if uses_audio else self.temporal_video
        return encode(features.to(self.device))

    def frozen_features(self, batch: Batch) -> Tensor:
        """Run the frozen encoders on the media of a batch, for `media_tokens`.

        Returns:
            (B, T, Q, D): of `encode_segments` for sound and the audio branch, else `encode_frames`.
        """
        if batch.audio_values is not None:
            return self.encode_segments(batch.audio_values.to(self.device), "audio")
        if batch.pixel_values is None:
            raise ValueError("a batch needs pixel_values or audio_values, or features of them")
        # A picture is a clip of one frame; the audio branch reads frames as it reads sounds.
        pixels = batch.pixel_values.to(self.device)
        video = pixels if pixels.ndim == 5 else rearrange(pixels, "b c h w -> b c 1 h w")
        if self.settings.trained_branch == "audio":
            return self.encode_segments(rearrange(video, "b c t h w -> b t c h w"), "vision")
        return self.encode_frames(video)


def splice(embeddings: Tensor, input_ids: Tensor, media: Tensor, media_token_id: int) -> Tensor:
    """Return embeddings with media tokens in the place of the placeholders.

    Args:
        embeddings: (B, L, D) of `input_ids`; the values at the placeholders do not matter.
        input_ids: (B, L).
        media: (B, N, D) tokens, all N of a row's media in the order of its text.
        media_token_id: id of `<ImageHere>`.

    Returns:
        (B, L, D) in the precision of `embeddings`.

    Raises:
        ValueError: a row does not have exactly N placeholders.
    """
    places = input_ids == media_token_id
    counts = places.sum(dim=1)
    wrong = (counts != media.shape[1]).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"row {row} has {int(counts[row])} {IMAGE_PLACEHOLDER} but its media have "
            f"{media.shape[1]} tokens; num_video_query_token (num_audio_query_token for the audio "
            "branch) of the data set must be that of the model, and no placeholder truncated"
        )
    media = media.to(embeddings.device, embeddings.dtype)
    return embeddings.masked_scatter(places[..., None].to(embeddings.device), media)


def _set_training(module: nn.Module, training: bool) -> None:
    """Set the mode of a module and its children; what has no gradients stays in eval mode."""
    parameters = list(module.parameters())
    trains = any(parameter.requires_grad for parameter in parameters)
    # A module without parameters, such as dropout, follows the module that holds it.
    module.training = training and (trains or not parameters)
    for child in module.children():
        _set_training(child, module.training)


def _check_dims(media: Tensor, expected: str) -> None:
    if media.ndim != 5:
        raise ValueError(f"{expected} expected, shape {tuple(media.shape)} given")
