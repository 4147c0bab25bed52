"""The model as transformers knows models: configuration, processor and model for the Auto classes.

The classes wrap the project's own, so that answers are the chat's. `video-llama export hf` writes
folders for `from_pretrained`; each holds a stub that imports this module.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import video_llama.common.compat

import torch
from einops import rearrange
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForMultimodalLM,
    AutoProcessor,
    BatchFeature,
    GenerationMixin,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    StoppingCriteria,
    StoppingCriteriaList,
)

from video_llama.chat.media import MediaProcessing
from video_llama.config.schema import Config, config_of
from video_llama.models.generation.generate import ends_with_stop
from video_llama.models.settings import WEIGHT_KEYS
from video_llama.models.video_llama import VideoLlama
from video_llama.processors.decode import DecodedFile, decode_file
from video_llama.text.questions import Media, frames_message
from video_llama.text.templates import TEMPLATES, Turn
from video_llama.text.tokenizer import TOKENIZER_FILE, load_tokenizer
from video_llama.types import RequestError

STUB = "modeling_video_llama.py"
STUB_TEXT = (
    "from video_llama.apps.hf import VideoLlamaConfig, VideoLlamaModel, VideoLlamaProcessor\n"
)
"""One line: `trust_remote_code=True` then needs no import of this package before."""


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
            architectures=[VideoLlamaModel.__name__],
            auto_map={
                "AutoConfig": f"{stub}.{VideoLlamaConfig.__name__}",
                "AutoModelForMultimodalLM": f"{stub}.{VideoLlamaModel.__name__}",
                "AutoProcessor": f"{stub}.{VideoLlamaProcessor.__name__}",
            },
            dtype=model.language_model.dtype,
        )


class VideoLlamaModel(PreTrainedModel, GenerationMixin):
    """Video-LLaMA for `from_pretrained`, `generate`, pipelines and PEFT."""

    config_class = VideoLlamaConfig
    base_model_prefix = "video_llama"
    main_input_name = "input_ids"
    input_modalities = ["text", "image", "video", "audio"]  # noqa: RUF012
    _no_split_modules = ["LlamaDecoderLayer", "EvaBlock"]  # noqa: RUF012
    _supports_sdpa = True
    # Loaded in fp32 and brought to their own precision on the device, and never quantised: only the
    # LLM has the dtype.
    _keep_in_fp32_modules = [  # noqa: RUF012
        *("video_llama.vision_encoder", "video_llama.frame_qformer", "video_llama.video_branch"),
        *("video_llama.audio_encoder", "video_llama.audio_branch"),
    ]
    _keep_in_fp32_modules_strict = _keep_in_fp32_modules

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
        self._placed = "cpu"
        self.post_init()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _init_weights(self, module: torch.nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        # No file holds this buffer of EVA's attention: keys have no bias.
        if module._buffers.get("k_bias") is not None:
            module.get_buffer("k_bias").zero_()

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
        kinds = media.get("media_kinds")
        if kinds is None:
            return text
        # `from_pretrained` chooses the device; the encoders' own precision depends on it.
        if self.video_llama.device.type != self._placed:
            self._placed = self.video_llama.device.type
            self.video_llama.set_precisions(self._placed)
        clips = _split(media["pixel_values"], media["frame_counts"])
        sounds = _split(media["audio_values"], media["segment_counts"])
        # In the order of the prompt.
        tokens = torch.cat([self._tokens(kind, clips, sounds) for kind in kinds.tolist()], dim=1)
        places = input_ids == self.video_llama.media_token_id
        if int(places.sum()) != tokens.shape[1]:
            raise ValueError(
                f"the prompts have {int(places.sum())} places for media, whose encoders give "
                f"{tokens.shape[1]} tokens; make both with one call of the processor"
            )
        placed = tokens[0].to(text.device, text.dtype)
        return text.masked_scatter(places[..., None].to(text.device), placed)

    def _tokens(self, kind: int, clips: Iterator[Tensor], sounds: Iterator[Tensor]) -> Tensor:
        if kind == _SOUND:
            return self.video_llama.encode_audio(next(sounds)[None])
        return self.video_llama.encode_video(rearrange(next(clips), "t c h w -> 1 c t h w"))

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
        media = {name: options.pop(name, None) for name in _MEDIA_INPUTS}
        embeds = self.embed(input_ids, media)
        # <ImageHere> has no row in any table: processors of logits must not meet it.
        ids = input_ids.masked_fill(input_ids == self.video_llama.media_token_id, 0)
        # A single id ends an answer by itself; a mark of several, such as Vicuna's, needs this.
        marks = [mark for mark in self.config.manifest.get("stop_ids", []) if len(mark) > 1]
        if marks:
            given = options.pop("stopping_criteria", None) or []
            own = _EndsWithStop(marks, input_ids.shape[1])
            options["stopping_criteria"] = StoppingCriteriaList([*given, own])
        return super().generate(input_ids=ids, inputs_embeds=embeds, **options)


class VideoLlamaProcessor(ProcessorMixin):
    """Messages with files to what the model takes, and ids to text.

    Args:
        config: of the exported folder.
        folder: that holds `tokenizer.model`; transformers' own file of it gives other ids.
    """

    attributes: ClassVar[list[str]] = []

    def __init__(self, config: VideoLlamaConfig, folder: str | Path) -> None:
        self.config, self.folder = config, Path(folder)
        self.tokenizer = load_tokenizer(folder)
        self.chat_template = None
        cfg = config.typed
        self._settings = cfg.model
        self._template = TEMPLATES.get(cfg.model.template)
        self._processing = MediaProcessing.of(cfg.model, cfg)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, path: str | Path, **options: Any
    ) -> VideoLlamaProcessor:
        """Load the processor of an exported folder."""
        return cls(VideoLlamaConfig.from_pretrained(path), path)

    def save_pretrained(  # type: ignore[override]
        self, path: str | Path, **options: Any
    ) -> list[str]:
        """Write what `from_pretrained` needs."""
        folder = Path(path)
        self.config.save_pretrained(folder)
        if folder.resolve() != self.folder.resolve():
            shutil.copy(self.folder / TOKENIZER_FILE, folder)
        (folder / STUB).write_text(STUB_TEXT, "utf-8")
        return []

    def apply_chat_template(  # type: ignore[override]
        self, conversation: Sequence[Mapping[str, Any]], *, use_audio: bool = True, **options: Any
    ) -> Any:
        """Read the files of messages and write the prompt.

        Args:
            conversation: messages with a role (system, user, assistant) and a text, or a list of
                `{"type": "text", "text": ...}` and `{"type": "video", "path": ...}` (or image,
                audio).
            use_audio: whether clips are heard.
            options: transformers' own; `tokenize=False` gives the text.

        Raises:
            RequestError: a message or part that is not understood.
            MediaError: a file cannot be used.
        """
        system, turns, files = self._turns(conversation, use_audio)
        if not options.get("tokenize", True):
            return self._template.chat_text(turns, system=system)
        ids = torch.tensor([self._template.chat_ids(turns, self.tokenizer, system=system)])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **_packed(files)}
        return _Inputs(inputs)

    def batch_decode(self, sequences: Any, *_: Any, **__: Any) -> list[str]:
        """Write ids as text; media become nothing."""
        return [self.decode(row) for row in sequences]

    def decode(self, token_ids: Any, *_: Any, **__: Any) -> str:
        """Write ids as text, without the stop mark at its end."""
        ids = token_ids.tolist() if isinstance(token_ids, Tensor) else list(token_ids)
        known = [i for i in ids if i < self.config.text_config.vocab_size]
        text: str = self.tokenizer.decode(known, skip_special_tokens=True)
        for stop in self._template.stop_texts:
            text = text.removesuffix(stop)
        return text

    def post_process_multimodal_output(self, generated_outputs: Any, *_: Any, **__: Any) -> Any:
        """Write ids as text, as a pipeline asks for it."""
        return self.batch_decode(generated_outputs)

    def _turns(
        self, conversation: Sequence[Mapping[str, Any]], use_audio: bool
    ) -> tuple[str | None, list[Turn], list[DecodedFile]]:
        system: str | None = None
        turns: list[Turn] = []
        files: list[DecodedFile] = []
        for message in conversation:
            text, paths = _content(message)
            if message["role"] == "system":
                system = text
            elif message["role"] == "assistant" and turns and turns[-1].answer is None:
                turns[-1] = Turn(turns[-1].question, turns[-1].media, text)
            elif message["role"] == "user":
                read = [self._read(kind, path, use_audio) for kind, path in paths]
                files += read
                media = tuple(medium for file in read for medium in self._media(file))
                turns.append(Turn(text, media))
            else:
                raise RequestError(f"role {message['role']!r} given where it has no place")
        if not turns or turns[-1].answer is not None:
            raise RequestError("the last message is not the user's: there is nothing to answer")
        return system, turns, files

    def _read(self, kind: Any, path: str, use_audio: bool) -> DecodedFile:
        heard = self._settings.equip_audio_branch and (use_audio or kind == "audio")
        processing = self._processing
        return decode_file(
            path,
            kind,
            image=processing.image.build(),
            video=processing.video.build(),
            audio=processing.audio.build() if heard else None,
        )

    def _media(self, file: DecodedFile) -> Iterable[Media]:
        # The sound of a clip comes before its frames, as in the chat.
        if file.sound is not None:
            yield Media("audio", self._settings.num_audio_query_token)
        if file.picture is not None:
            yield Media("image", self._settings.num_video_query_token)
        if file.clip is not None:
            message = frames_message(file.clip.seconds)
            yield Media("video", self._settings.num_video_query_token, message)


_PICTURE, _SOUND = 0, 1
_MEDIA_INPUTS = ("pixel_values", "frame_counts", "audio_values", "segment_counts", "media_kinds")


def _packed(files: Sequence[DecodedFile]) -> dict[str, Tensor]:
    """Lay the media of a prompt one behind the other, with their lengths and order."""
    pictures, sounds, kinds = [], [], []
    for file in files:
        if file.sound is not None:
            sounds.append(file.sound.values)
            kinds.append(_SOUND)
        pixels = file.clip.pixel_values if file.clip is not None else None
        if file.picture is not None:
            pixels = rearrange(file.picture, "c h w -> c 1 h w")
        if pixels is not None:
            pictures.append(rearrange(pixels, "c t h w -> t c h w"))
            kinds.append(_PICTURE)
    found: dict[str, Tensor] = {"media_kinds": torch.tensor(kinds)} if kinds else {}
    for values, counts, items in (
        ("pixel_values", "frame_counts", pictures),
        ("audio_values", "segment_counts", sounds),
    ):
        if items:
            found |= {values: torch.cat(items), counts: torch.tensor([len(i) for i in items])}
    return found


def _split(values: Tensor | None, counts: Tensor | None) -> Iterator[Tensor]:
    return iter(() if values is None or counts is None else values.split(counts.tolist()))


def _content(message: Mapping[str, Any]) -> tuple[str, list[tuple[Any, str]]]:
    """Return the text of a message, and kind and path of each of its files."""
    content, texts, paths = message["content"], [], []
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        kind = part.get("type")
        if kind == "text":
            texts.append(part["text"])
            continue
        path = next((part[key] for key in ("path", "url", str(kind)) if key in part), None)
        if kind not in ("image", "video", "audio") or not isinstance(path, str | Path):
            raise RequestError(
                f"a part of type {kind!r} with {sorted(part)} given; text, or the path of an "
                "image, video or audio expected"
            )
        paths.append((kind, str(path)))
    return "".join(texts), paths


class _PlaceholderId:
    """What the model needs of a tokenizer: `<ImageHere>` is the first id beyond the vocabulary."""

    def __init__(self, vocabulary: int) -> None:
        self._id = vocabulary

    def convert_tokens_to_ids(self, _: str) -> int:
        return self._id


class _Inputs(BatchFeature):
    """Inputs that keep their number types: a pipeline would cast all of them to the LLM's."""

    def to(self, *args: Any, **options: Any) -> _Inputs:
        options.pop("dtype", None)
        moved = [arg for arg in args if not isinstance(arg, torch.dtype)]
        super().to(*moved, **options)
        return self


class _EndsWithStop(StoppingCriteria):
    """Ends an answer that closes with a stop mark of several tokens, such as Vicuna's ###."""

    def __init__(self, stop_ids: list[list[int]], prompt_length: int) -> None:
        self._stop_ids, self._start = stop_ids, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Any:
        rows = input_ids[:, self._start :].tolist()
        ended = [ends_with_stop(row, self._stop_ids) for row in rows]
        return torch.tensor(ended, device=input_ids.device)


AutoConfig.register(VideoLlamaConfig.model_type, VideoLlamaConfig)
AutoModelForMultimodalLM.register(VideoLlamaConfig, VideoLlamaModel)
AutoProcessor.register(VideoLlamaConfig, VideoLlamaProcessor)
