"""Configuration and model of `video_llama.hf`, around the project's own model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import asdict
from typing import Any, ClassVar

import video_llama.common.compat

import torch
from einops import rearrange
from torch import Tensor
from transformers import (
    GenerationMixin,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from video_llama.config.schema import Config, config_of
from video_llama.models.generation.generate import ends_with_stop
from video_llama.models.settings import WEIGHT_KEYS
from video_llama.models.video_llama import VideoLlama

STUB = "modeling_video_llama.py"
CLASSES = {
    "AutoConfig": "VideoLlamaConfig",
    "AutoModelForMultimodalLM": "VideoLlamaModel",
    "AutoProcessor": "VideoLlamaProcessor",
}
STUB_TEXT = f"from video_llama.apps.hf import {', '.join(CLASSES.values())}\n"
"""One line: `trust_remote_code=True` then needs no import of this package before."""

PICTURE, SOUND = 0, 1
"""What `media_kinds` holds of each medium."""
_MEDIA_INPUTS = ("pixel_values", "frame_counts", "audio_values", "segment_counts", "media_kinds")


class VideoLlamaConfig(PreTrainedConfig):
    """What `config.json` of an exported folder holds.

    Args:
        text_config: of the LLaMA.
        configuration: the project's own, every key, without paths of weights.
        manifest: which files it was made of.
    """

    model_type = "video_llama"
    sub_configs: ClassVar = {"text_config": LlamaConfig}

    def __init__(
        self,
        text_config: Mapping[str, Any] | LlamaConfig | None = None,
        configuration: Mapping[str, Any] | None = None,
        manifest: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        given = isinstance(text_config, LlamaConfig)
        self.text_config: Any = text_config if given else LlamaConfig(**(text_config or {}))
        self.configuration = dict(configuration or {})
        self.manifest = dict(manifest or {})
        super().__init__(**options)

    @property
    def typed(self) -> Config:
        """The project's own configuration."""
        return config_of(self.configuration)[0]

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Do nothing, as for the model."""

    @classmethod
    def of(cls, model: VideoLlama, manifest: Mapping[str, Any]) -> VideoLlamaConfig:
        """Describe a model that was built from a configuration."""
        # As JSON has it: tuples become lists, which a YAML could hold.
        values = json.loads(json.dumps(asdict(model.configuration), default=str))
        # The folder brings all weights; paths of this machine mean nothing elsewhere.
        paths = dict.fromkeys((*WEIGHT_KEYS, "weights")) | {"llama_model": ".", "ckpt": "."}
        values["model"] |= paths
        values["model"] |= {"quantization": "none", "low_resource": False, "prompt_path": None}
        for entry in values["datasets"].values():
            entry |= {"build_info": {}, "tokenizer_name": "."}
        values["run"] = {"task": values["run"]["task"]}
        text_config = copy(model.language_model.config)
        text_config._name_or_path = ""
        stub = STUB.removesuffix(".py")
        return cls(
            text_config=text_config,
            configuration=values,
            manifest=manifest,
            architectures=[CLASSES["AutoModelForMultimodalLM"]],
            auto_map={auto: f"{stub}.{name}" for auto, name in CLASSES.items()},
            dtype=model.language_model.dtype,
        )


_ENCODERS = [
    *("video_llama.vision_encoder", "video_llama.frame_qformer", "video_llama.video_branch"),
    *("video_llama.audio_encoder", "video_llama.audio_branch"),
]
"""Parts whose number types the settings give: the `dtype` of a load is that of the LLM."""


class VideoLlamaModel(PreTrainedModel, GenerationMixin):
    """Video-LLaMA for `from_pretrained`, `generate`, pipelines and PEFT."""

    config_class = VideoLlamaConfig
    base_model_prefix = "video_llama"
    main_input_name = "input_ids"
    input_modalities = ["text", "image", "video", "audio"]  # noqa: RUF012
    _supports_sdpa = True
    # Each of these reads tensors of its children, and so lies on one device.
    _no_split_modules = [  # noqa: RUF012
        *("VisionEncoder", "FrameQFormer", "TemporalQFormer", "MeanPooling", "ImageBind"),
        "LlamaDecoderLayer",
    ]
    # Quantisation leaves out what stands here: only LLaMA's layers are quantised.
    _keep_in_fp32_modules = _ENCODERS

    def __init__(self, config: VideoLlamaConfig) -> None:
        super().__init__(config)
        settings = config.typed.model
        self.video_llama: VideoLlama = VideoLlama(
            settings,
            language_model=LlamaForCausalLM(config.text_config),
            tokenizer=_PlaceholderId(config.text_config.vocab_size),
            device_type="cpu",
        )
        self.video_llama.configuration = config.typed
        self._placed = ""
        self.post_init()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _init_weights(self, module: torch.nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        # No file holds this buffer of EVA's attention: keys have no bias.
        if module._buffers.get("k_bias") is not None:
            module.get_buffer("k_bias").zero_()

    def _get_dtype_plan(self, dtype: torch.dtype) -> dict[str, Any]:
        # None leaves a tensor as the file has it. Its device, which decides, is not known yet.
        return dict.fromkeys(_ENCODERS)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModelForMultimodalLM") -> None:
        """Do nothing: a folder that is saved gets the stub again, and no copy of this file."""

    def get_input_embeddings(self) -> Any:
        """Return the LLM's word table."""
        return self.video_llama.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        """Return the LLM's output layer."""
        return self.video_llama.language_model.get_output_embeddings()

    def embed(self, input_ids: Tensor, media: Mapping[str, Tensor | None]) -> Tensor:
        """Embed prompts of the processor with its media in their places, (B, L, D).

        Raises:
            ValueError: placeholders and media do not match.
        """
        text: Tensor = self.video_llama.embed(input_ids, None)
        # `from_pretrained` chooses the device; the encoders' own precision depends on it.
        if self.video_llama.device.type != self._placed:
            self._placed = self.video_llama.device.type
            self.video_llama.set_precisions(self._placed)
        clips = _split(media.get("pixel_values"), media.get("frame_counts"))
        sounds = _split(media.get("audio_values"), media.get("segment_counts"))
        kinds = media.get("media_kinds")
        # In the order of the prompt.
        tokens = [self._tokens(k, clips, sounds) for k in ([] if kinds is None else kinds.tolist())]
        places, found = input_ids == self.video_llama.media_token_id, sum(map(len, tokens))
        # Also without any media: the places would be read as ordinary words.
        if int(places.sum()) != found:
            raise ValueError(
                f"the prompts have {int(places.sum())} places for media, whose encoders give "
                f"{found} tokens; make both with one call of the processor"
            )
        if not tokens:
            return text
        placed = torch.cat(tokens).to(text.device, text.dtype)
        return text.masked_scatter(places[..., None].to(text.device), placed)

    def _tokens(self, kind: int, clips: Iterator[Tensor], sounds: Iterator[Tensor]) -> Tensor:
        if kind == SOUND:
            return self.video_llama.encode_audio(next(sounds)[None])[0]
        return self.video_llama.encode_video(rearrange(next(clips), "t c h w -> 1 c t h w"))[0]

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """Run the LLM over prompts with the processor's media; options are LLaMA's (`labels`)."""
        media = {name: options.pop(name, None) for name in _MEDIA_INPUTS}
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("neither input_ids nor inputs_embeds given, one of them expected")
            inputs_embeds = self.embed(input_ids, media)
        return self.video_llama.language_model(inputs_embeds=inputs_embeds, **options)

    @torch.no_grad()
    def generate(self, input_ids: Tensor | None = None, **options: Any) -> Any:
        """Answer prompts of the processor; options are those of transformers' `generate`.

        Returns:
            As there: the prompt's ids, 0 in the place of media, and those of the answer.
        """
        if input_ids is None:
            return super().generate(**options)
        length, context = input_ids.shape[1], self.config.text_config.max_position_embeddings
        if length >= context:
            raise ValueError(
                f"the prompt takes {length} positions with its media, but the model's context "
                f"holds {context}; give fewer files or turns"
            )
        media = {name: options.pop(name, None) for name in _MEDIA_INPUTS}
        embeds = self.embed(input_ids, media)
        # <ImageHere> has no row in any table: processors of logits must not meet it.
        ids = input_ids.masked_fill(input_ids == self.video_llama.media_token_id, 0)
        self._add_stops(options, length)
        return super().generate(input_ids=ids, inputs_embeds=embeds, **options)

    def _add_stops(self, options: dict[str, Any], length: int) -> None:
        """Let answers end as in a chat: at each stop mark, and not before their first token."""
        config = options.get("generation_config") or self.generation_config
        least = options.get("min_new_tokens") or config.min_new_tokens or 1
        marks = self.config.manifest.get("stop_ids", [])
        first = sorted({mark[0] for mark in marks})
        if first:
            device = str(self.video_llama.language_model.lm_head.weight.device)
            early = MinNewTokensLengthLogitsProcessor(length, least, first, device=device)
            given = options.pop("logits_processor", None) or []
            options["logits_processor"] = LogitsProcessorList([early, *given])
        # A single id ends an answer by itself; a mark of several, such as Vicuna's, needs this.
        long = [mark for mark in marks if len(mark) > 1]
        if long:
            given = options.pop("stopping_criteria", None) or []
            options["stopping_criteria"] = StoppingCriteriaList(
                [*given, _EndsWithStop(long, length)]
            )


def _split(values: Tensor | None, counts: Tensor | None) -> Iterator[Tensor]:
    return iter(() if values is None or counts is None else values.split(counts.tolist()))


class _PlaceholderId:
    """What the model needs of a tokenizer: `<ImageHere>` is the first id beyond the vocabulary."""

    def __init__(self, vocabulary: int) -> None:
        self._id = vocabulary

    def convert_tokens_to_ids(self, _: str) -> int:
        return self._id


class _EndsWithStop(StoppingCriteria):
    """Ends an answer that closes with a stop mark of several tokens, such as Vicuna's ###."""

    def __init__(self, stop_ids: list[list[int]], prompt_length: int) -> None:
        self._stop_ids, self._start = stop_ids, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Any:
        rows = input_ids[:, self._start :].tolist()
        ended = [ends_with_stop(row, self._stop_ids) for row in rows]
        return torch.tensor(ended, device=input_ids.device)
