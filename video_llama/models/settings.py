"""Every key of the `model` section, with its default and its meaning. Torch-free.

Paths are kept as the YAML spells them. Defaults are the original's where it has one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from video_llama.common.checks import (
    MAX_LAYERS,
    MAX_POSITIONS,
    MAX_SIDE,
    MAX_TOKENS,
    MAX_WIDTH,
    at_least,
    at_most,
    divisible,
)
from video_llama.common.registry import Registry
from video_llama.text.templates import STAGE_1_END_SYM, TEMPLATES
from video_llama.types import ConfigError

Branch = Literal["video", "audio"]
WEIGHT_KEYS = (
    *("llama_model", "vit_ckpt", "q_former_model", "llama_proj_model", "imagebind_ckpt_path"),
    *("ckpt", "ckpt_2"),
)
"""Keys of the weight files."""
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Layers of a LLaMA that an adapter may stand beside."""
PrecisionName = Literal["fp32", "bf16", "fp16"]


MODELS: Registry[type[ModelSettings]] = Registry("model.arch")
"""`model.arch` to the class of its settings."""


@dataclass(kw_only=True)
class VitSettings:
    """Sizes of the EVA vision transformer; the defaults are ViT-g."""

    patch_size: int = 14
    """Side of a patch, pixels; divides model.image_size."""
    embed_dim: int = 1408
    """Width of the blocks."""
    depth: int = 39
    """Number of blocks (EVA's 40th is not used)."""
    num_heads: int = 16
    """Attention heads; divides embed_dim."""
    mlp_ratio: float = 4.3637
    """Width of the MLP over embed_dim, rounded down."""

    def __post_init__(self) -> None:
        at_least(self, 1, "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
        at_most(self, MAX_WIDTH, "embed_dim")
        at_most(self, 256, "mlp_ratio")
        at_most(self, MAX_LAYERS, "depth")
        divisible(self, "embed_dim", "num_heads")


@dataclass(kw_only=True)
class QFormerSettings:
    """Sizes of the frame Q-Former; width, heads and MLP also hold for the temporal Q-Formers."""

    hidden_size: int = 768
    """Width of the layers."""
    num_hidden_layers: int = 12
    """Layers of the frame Q-Former; every other one has cross-attention."""
    num_attention_heads: int = 12
    """Attention heads; divides hidden_size."""
    intermediate_size: int = 3072
    """Width of the feed-forward layer."""

    def __post_init__(self) -> None:
        at_least(
            self, 1, "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"
        )
        at_most(self, MAX_WIDTH, "hidden_size", "intermediate_size")
        at_most(self, MAX_LAYERS, "num_hidden_layers")
        divisible(self, "hidden_size", "num_attention_heads")


@dataclass(kw_only=True)
class ImageBindSettings:
    """Sizes of ImageBind's vision and audio towers; the defaults are imagebind_huge."""

    vision_embed_dim: int = 1280
    """Width of the vision tower."""
    vision_num_blocks: int = 32
    """Blocks of the vision tower."""
    vision_num_heads: int = 16
    """Attention heads of the vision tower; divides its width."""
    audio_embed_dim: int = 768
    """Width of the audio tower."""
    audio_num_blocks: int = 12
    """Blocks of the audio tower."""
    audio_num_heads: int = 12
    """Attention heads of the audio tower; divides its width."""
    out_embed_dim: int = 1024
    """Width of the joint space, which the audio Q-Former reads."""
    image_size: int = 224
    """Side of the picture that the vision positions are made for, pixels; others are resized."""

    def __post_init__(self) -> None:
        at_least(self, 1, *self.__dataclass_fields__)
        at_most(self, MAX_WIDTH, "vision_embed_dim", "audio_embed_dim", "out_embed_dim")
        at_most(self, MAX_LAYERS, "vision_num_blocks", "audio_num_blocks")
        at_most(self, MAX_SIDE, "image_size")
        divisible(self, "vision_embed_dim", "vision_num_heads")
        divisible(self, "audio_embed_dim", "audio_num_heads")


@MODELS.register("video_llama")
@dataclass(kw_only=True)
class ModelSettings:
    """The `model` section: architecture, weight files, what is trained, text and precision."""

    arch: str = "video_llama"
    """Registered name of the model."""
    model_type: Literal["pretrain_vicuna", "pretrain_llama_v2"] = "pretrain_vicuna"
    """Kind of LLM; gives template, prompt_template and end_sym where these are not set."""
    template: Literal["auto", "vicuna", "llama_v2"] = "auto"
    """Conversation format; auto: that of model_type. After loading never auto."""

    # Architecture: the released weights fit the defaults.
    vit_model: Literal["eva_clip_g"] = "eva_clip_g"
    """Vision transformer."""
    vit_config: VitSettings = field(default_factory=VitSettings)
    """Its sizes."""
    image_size: int = 224
    """Side of every frame and picture that enters the vision transformer, pixels."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last vision block while it trains, 0 to 1."""
    use_grad_checkpoint: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    qformer_config: QFormerSettings = field(default_factory=QFormerSettings)
    """Sizes of the Q-Formers."""
    num_query_token: int = 32
    """Queries of the frame Q-Former: vectors per frame."""
    num_video_query_token: int = 32
    """Queries of the video Q-Former: LLM positions per clip or picture."""
    num_audio_query_token: int = 8
    """Queries of the audio Q-Former: LLM positions per sound."""
    max_frame_pos: int = 32
    """Frames that have a position: the most per clip."""
    max_audio_clips: int = 8
    """Sound segments (or frames of the audio branch) that have a position: the most per item."""
    interpolate_positions: bool = False
    """Stretch the position tables over more frames or segments instead of refusing them."""
    position_init_std: float = 1.0
    """Spread of the position tables before training; beside sound features of norm 1 (audio branch)
    0.02 learns sooner. Files that hold the tables replace them."""
    fusion_head_layers: int = 2
    """Layers of the video and of the audio Q-Former; the released weights have 2."""
    fusion_header_type: str = "seqTransf"
    """Kind of temporal fusion; only seqTransf exists, any other value has no effect and warns."""
    video_frame_positions: bool = True
    """Tell the video Q-Former the place of each frame; false: an ablation."""
    video_fusion: Literal["qformer", "mean"] = "qformer"
    """What joins the frames of a clip: the video Q-Former, or (an ablation) the mean over time."""
    equip_audio_branch: bool = True
    """Build ImageBind and the audio Q-Former."""
    imagebind_config: ImageBindSettings = field(default_factory=ImageBindSettings)
    """Sizes of ImageBind."""
    audio_feature_norm: Literal["none", "unit"] = "none"
    """Length of ImageBind's sound features: none: as they come (20 with the released file, though
    the branch is trained on pictures, whose length is 1); unit: 1 too."""

    weights: str | None = None
    """Folder whose files, told by what is in them, take the place of the paths below."""
    # Weight files, in the order in which they are read: of two that hold a tensor, the later wins.
    llama_model: str
    """Folder of the LLM: config.json, tokenizer.model, weights."""
    vit_ckpt: str | None = None
    """EVA weight file (eva_vit_g.pth)."""
    q_former_model: str | None = None
    """BLIP-2 weight file of ln_vision and the frame Q-Former (blip2_pretrained_flant5xxl.pth)."""
    llama_proj_model: str | None = None
    """Weight file that starts llama_proj (pretrained_minigpt4.pth)."""
    imagebind_ckpt_path: str | None = None
    """imagebind_huge.pth, or the folder that holds it."""
    ckpt: str | None = None
    """Weight file loaded last but one: the video branch, or the whole model."""
    ckpt_2: str | None = None
    """Weight file loaded last: the audio branch."""
    random_init: bool = False
    """Fill the parts for which no file is given with random values; false: that is an error."""

    # What trains: one list of prefixes follows from these, in weights/names.py.
    freeze_vit: bool = True
    """Keep the vision transformer and ln_vision as they are."""
    freeze_qformer: bool = True
    """Keep the frame Q-Former and its queries as they are."""
    frozen_llama_proj: bool = True
    """Keep llama_proj as it is."""
    frozen_video_Qformer: bool = True
    """Keep the video Q-Former, its queries and the frame positions as they are."""
    frozen_audio_Qformer: bool = True
    """Keep the audio Q-Former, its queries, positions and projection as they are."""

    # Precision of the frozen parts: what trains keeps fp32 weights, run.amp lowers its arithmetic.
    vit_precision: PrecisionName = "fp16"
    """Number type of the vision transformer; its ln_vision is always fp32. fp16: fp32 on a CPU."""
    imagebind_precision: PrecisionName = "fp32"
    """Number type of ImageBind."""
    precision: PrecisionName = "bf16"
    """Number type of the LLM."""
    quantization: Literal["none", "int8", "nf4"] = "none"
    """How the LLM's linear layers are stored."""
    low_resource: bool = False
    """The original's name for quantization int8."""
    llm_device_map: Literal["single", "auto"] = "single"
    """Where the LLM goes: single: to run.device; auto: spread over all GPUs by their memory."""

    # LoRA on the LLM (extra `lora`); names and defaults are those of MiniGPT-v2's configurations.
    lora_r: int = 0
    """Rank of the adapter that trains with the branch; 0: none, the LLM stays as it is."""
    lora_alpha: int = 16
    """Scale of the adapter: its output counts lora_alpha / lora_r times."""
    lora_dropout: float = 0.05
    """Dropout of the adapter's input in training."""
    lora_target_modules: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])
    """Layers of the LLM that get one: some of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj,
    down_proj."""
    lora_ckpt: str | None = None
    """Folder of a trained adapter, the one beside its branch; used as it is, or trained on."""

    # Text of the caption data sets; conversations have max_length in their own section.
    max_txt_len: int = 32
    """Longest caption in training, tokens, its end symbol included."""
    prompt_path: str | None = None
    """File with one caption prompt per line, each with one <ImageHere>."""
    prompt_template: str = ""
    """Text around a caption prompt, `{}` for the prompt; empty: that of the template."""
    end_sym: str = ""
    """Ends a caption; empty: a newline in stage 1 (no prompt_path), else that of the template."""

    def __post_init__(self) -> None:
        self._check_sizes()
        self._check_training()
        self._check_lora()
        self._settle_text()
        self._settle_quantization()

    @property
    def trained_branch(self) -> Branch | None:
        """The branch whose Q-Former trains; None: inference only."""
        if not self.frozen_video_Qformer:
            return "video"
        return "audio" if self.equip_audio_branch and not self.frozen_audio_Qformer else None

    @property
    def trains_adapter(self) -> bool:
        """Whether an adapter of the LLM trains; one that is only given stays as it is."""
        return self.lora_r > 0 and self.trained_branch is not None

    @property
    def imagebind_file(self) -> Path | None:
        """The file that `imagebind_ckpt_path` means; a folder means the released file in it."""
        if not self.imagebind_ckpt_path:
            return None
        path = Path(self.imagebind_ckpt_path)
        is_named_file = path.suffix in {".pth", ".pt", ".bin", ".safetensors"}
        if path.is_file() or (is_named_file and not path.is_dir()):
            return path
        # The original takes the folder; `video-llama convert` leaves safetensors in it.
        converted = path / "imagebind_huge.safetensors"
        return converted if converted.is_file() else path / "imagebind_huge.pth"

    def _check_sizes(self) -> None:
        # Upper limits as well: an absurd size would fail as lack of memory, far from the setting.
        positions = ("max_frame_pos", "max_audio_clips")
        queries = ("num_query_token", "num_video_query_token", "num_audio_query_token")
        at_least(self, 1, "image_size", "max_txt_len", "fusion_head_layers", *positions, *queries)
        at_most(self, MAX_SIDE, "image_size")
        at_most(self, MAX_TOKENS, "max_txt_len")
        at_most(self, MAX_LAYERS, "fusion_head_layers")
        at_most(self, MAX_POSITIONS, *positions, *queries)
        at_least(self, 0, "position_init_std")
        if self.video_fusion == "mean" and self.num_video_query_token != self.num_query_token:
            raise ConfigError(
                f"num_video_query_token: {self.num_video_query_token} given, but num_query_token "
                f"({self.num_query_token}) expected, because video_fusion: mean keeps all of them"
            )
        if not 0 <= self.drop_path_rate < 1:
            raise ConfigError(f"drop_path_rate: {self.drop_path_rate} given, 0 to below 1 expected")
        if self.image_size % self.vit_config.patch_size:
            raise ConfigError(
                f"image_size: {self.image_size} given, "
                f"a multiple of vit_config.patch_size ({self.vit_config.patch_size}) expected"
            )

    def _check_training(self) -> None:
        # The original trains one branch at a time, and its files hold one branch each.
        trains_audio = not self.frozen_audio_Qformer
        if self.trained_branch == "video" and self.equip_audio_branch and trains_audio:
            raise ConfigError(
                "frozen_audio_Qformer: false given together with frozen_video_Qformer: false; "
                "train the branches one after the other and set one of the two to true"
            )
        if self.trained_branch == "audio" and not self.frozen_llama_proj:
            raise ConfigError(
                "frozen_llama_proj: false given while the audio branch trains, but it belongs to "
                "the video branch: set frozen_llama_proj to true"
            )
        if self.trained_branch is None and trains_audio:
            raise ConfigError(
                "frozen_audio_Qformer: false given, but equip_audio_branch is false, so there is "
                "no audio branch to train: set equip_audio_branch to true"
            )

    def _check_lora(self) -> None:
        at_least(self, 0, "lora_r", "lora_dropout")
        at_least(self, 1, "lora_alpha")
        at_most(self, MAX_POSITIONS, "lora_r", "lora_alpha")
        if self.lora_dropout >= 1:
            raise ConfigError(f"lora_dropout: {self.lora_dropout} given, below 1 expected")
        wrong = [name for name in self.lora_target_modules if name not in LORA_TARGETS]
        if wrong or not self.lora_target_modules:
            # The loss reads lm_head's weight directly, and cached features need fixed encoders.
            raise ConfigError(
                f"lora_target_modules: {wrong[0] if wrong else 'none'} given, some of "
                f"{', '.join(LORA_TARGETS)} expected (not lm_head, and nothing of the encoders)"
            )

    def _settle_text(self) -> None:
        # From here on no part of the program has to ask model_type: all three are settled.
        if self.template == "auto":
            self.template = "vicuna" if self.model_type == "pretrain_vicuna" else "llama_v2"
        template = TEMPLATES.get(self.template)
        self.prompt_template = self.prompt_template or template.caption_prompt
        stage_1 = self.trained_branch is not None and not self.prompt_path
        self.end_sym = self.end_sym or (STAGE_1_END_SYM if stage_1 else template.caption_end)
        if self.prompt_template.count("{}") != 1:
            raise ConfigError(
                f"prompt_template: {self.prompt_template!r} given, text with exactly one {{}} "
                "(the place of the prompt) expected"
            )

    def _settle_quantization(self) -> None:
        # The original's switch and ours may both be set, if they mean the same.
        if self.low_resource and self.quantization == "nf4":
            raise ConfigError("low_resource: true means int8, but quantization is nf4; leave one")
        if self.low_resource:
            self.quantization = "int8"
