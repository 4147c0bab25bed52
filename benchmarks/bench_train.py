"""Training steps against the original's way of computing them, in one run.

    python -m benchmarks.bench_train                     # widths of ViT-B, a few minutes on a CPU
    python -m benchmarks.bench_train --batch 32 --image-size 224
    python -m benchmarks.bench_train --preset 7b --device cuda --batch 32 --image-size 224

Weights are random. Media are in memory in both arms: decoding, which a full feature cache saves
too, is not in the figures. The arm with a cache takes features as `run.feature_cache` gives
them.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import reference
from benchmarks.harness import Comparison, compare, write
from video_llama.common.io import package_file
from video_llama.models.build import build_video_llama
from video_llama.models.language_model import causal_loss, linear_cross_entropy
from video_llama.models.llama_training import allow_packing
from video_llama.models.settings import (
    ImageBindSettings,
    ModelSettings,
    VitSettings,
)
from video_llama.models.video_llama import VideoLlama
from video_llama.models.weights.checks import RELEASED_SIZES
from video_llama.types import IGNORE_INDEX, CaptionBatch

VOCABULARY = 32000
CAPTION = "a man cuts an onion and puts it into a pan while a dog looks on"
TEXT_ROWS = 16
"""Conversations of an instruction batch."""
LOSS_ROWS = 2048
"""Labelled positions of the loss that is measured alone: 8 conversations of 256 words."""

SMALL: dict[str, Any] = {
    "vit_config": VitSettings(embed_dim=768, depth=12, num_heads=12, mlp_ratio=4.0),
    "imagebind_config": ImageBindSettings(
        vision_embed_dim=768,
        vision_num_blocks=12,
        vision_num_heads=12,
        audio_embed_dim=96,
        audio_num_blocks=1,
        audio_num_heads=4,
    ),
}
SMALL_LLM = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
}


def settings_of(args: argparse.Namespace, folder: Path, *, branch: str) -> ModelSettings:
    """A model that trains one branch; its Q-Formers have the released sizes."""
    small = args.preset == "small"
    shipped = package_file("presets/tiny/llama")
    values = json.loads((shipped / "config.json").read_text())
    values |= SMALL_LLM if small else RELEASED_SIZES["7b"]
    values |= {"num_key_value_heads": values["num_attention_heads"], "vocab_size": VOCABULARY}
    values["max_position_embeddings"] = 2048
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "tokenizer.model").write_bytes((shipped / "tokenizer.model").read_bytes())
    precision: Any = "bf16" if args.device == "cuda" else "fp32"
    audio = branch == "audio"
    sizes = dict(SMALL) if small else {}
    if "imagebind_config" in sizes:
        sizes["imagebind_config"] = replace(sizes["imagebind_config"], image_size=args.image_size)
    return ModelSettings(
        llama_model=str(folder),
        random_init=True,
        image_size=args.image_size,
        equip_audio_branch=audio,
        vit_precision=precision,
        imagebind_precision=precision,
        precision=precision,
        frozen_video_Qformer=audio,
        frozen_audio_Qformer=not audio,
        frozen_llama_proj=audio,
        **sizes,
    )


def built(args: argparse.Namespace, branch: str) -> VideoLlama:
    """The model, in training mode."""
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_of(args, Path(folder), branch=branch)
        return build_video_llama(settings, device=args.device, seed=0).train()


def stage_1(args: argparse.Namespace, branch: str, name: str) -> list[Comparison]:
    """A step on captions of clips, without and with cached features."""
    model = built(args, branch)
    size = args.image_size
    random = torch.Generator().manual_seed(0)
    video = torch.randn(args.batch, 3, args.frames, size, size, generator=random)
    batch = CaptionBatch(captions=[CAPTION] * args.batch, pixel_values=video).to(args.device)
    with torch.no_grad():
        features = model.frozen_features(batch).to(torch.float16)
    cached = replace(batch, pixel_values=None, features=features)
    run = partial(compare, repeats=args.repeats, device=args.device)
    theirs = partial(original_step, model, batch)
    return [
        run(f"{name} step", partial(our_step, model, batch), theirs),
        run(f"{name} step, cached features", partial(our_step, model, cached), theirs),
    ]


def our_step(model: VideoLlama, batch: CaptionBatch) -> None:
    """Forward and backward."""
    model.zero_grad()
    model(batch).loss.backward()


def original_step(model: VideoLlama, batch: CaptionBatch) -> None:
    """The same as the original computes it."""
    model.zero_grad()
    assert batch.pixel_values is not None
    with reference.original_attention(model):
        if model.settings.trained_branch == "audio":
            frames = batch.pixel_values.transpose(1, 2)
            media = reference.encode_audio(model, frames, "vision")
        else:
            media = reference.encode_video(model, batch.pixel_values)
        input_ids, labels, mask = model.token_sequences(batch, media.shape[1])
        ids, labels, mask = (tensor.to(media.device) for tensor in (input_ids, labels, mask))
        reference.loss(model, model.embed(ids, media), labels, mask).backward()


def text_batch(model: VideoLlama, longest: int) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, labels and mask of conversations whose lengths spread as real ones do.

    Lengths are quantiles of a log-normal distribution whose longest row is about twice the mean,
    which is less than in LLaVA's data.
    """
    normal = torch.distributions.Normal(0.0, 0.6)
    places = (torch.arange(TEXT_ROWS) + 0.5) / TEXT_ROWS
    sizes = normal.icdf(places).exp()
    lengths = (sizes / sizes.max() * longest).long()[torch.randperm(TEXT_ROWS)]
    random = torch.Generator().manual_seed(0)
    width = model.language_model.config.hidden_size
    embeddings = torch.randn(TEXT_ROWS, longest, width, generator=random)
    labels = torch.randint(0, VOCABULARY, (TEXT_ROWS, longest), generator=random)
    mask = torch.arange(longest) < lengths[:, None]
    labels[~mask] = IGNORE_INDEX
    llm = model.language_model
    return embeddings.to(llm.device, llm.dtype), labels.to(llm.device), mask.to(llm.device)


def packing(args: argparse.Namespace) -> tuple[list[Comparison], dict[str, Any]]:
    """Packed rows against rows padded to the longest, everything else alike."""
    padded = built(args, "video")
    packed = built(args, "video")
    allow_packing(packed.language_model)
    embeddings, labels, mask = text_batch(padded, args.longest)

    def step(model: VideoLlama) -> None:
        rows = embeddings.detach().requires_grad_()
        causal_loss(model.language_model, rows, labels, mask)[0].backward()

    result = compare(
        "instructions, packed",
        partial(step, packed),
        partial(step, padded),
        repeats=args.repeats,
        device=args.device,
    )
    facts = {"tokens": int(mask.sum()), "padded_tokens": mask.numel()}
    return [result], facts


def loss_memory(args: argparse.Namespace) -> Comparison:
    """The loss alone, from hidden states: chunks against the logits of all positions."""
    random = torch.Generator().manual_seed(0)
    width = 4096 if args.preset == "7b" else 512
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    hidden = torch.randn(LOSS_ROWS, width, generator=random).to(args.device, dtype)
    weight = (torch.randn(VOCABULARY, width, generator=random) / math.sqrt(width)).to(hidden)
    targets = torch.randint(0, VOCABULARY, (LOSS_ROWS,), generator=random).to(args.device)
    rows = torch.arange(LOSS_ROWS, device=args.device)

    def step(loss: Callable[[Tensor], Tensor]) -> None:
        loss(hidden.detach().requires_grad_()).backward()

    return compare(
        f"loss of {LOSS_ROWS} words of {VOCABULARY}",
        partial(step, lambda states: linear_cross_entropy(states, weight, targets, rows)),
        partial(step, lambda states: F.cross_entropy(F.linear(states, weight).float(), targets)),
        repeats=args.repeats,
        device=args.device,
    )


def main() -> None:
    """Measure, print a line per comparison and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--preset", choices=("small", "7b"), default="small")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, default=4, help="clips of a step")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--longest", type=int, default=256, help="longest conversation, tokens")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    comparisons = [loss_memory(args)]
    packed, tokens = packing(args)
    comparisons += packed
    comparisons += stage_1(args, "video", "VL stage 1")
    comparisons += stage_1(args, "audio", "AL stage 1")
    sizes = SMALL | {"language_model": SMALL_LLM} if args.preset == "small" else {}
    write(
        f"train_{args.preset}_{args.device}",
        args.device,
        comparisons,
        settings=vars(args),
        sizes={name: v if isinstance(v, dict) else asdict(v) for name, v in sizes.items()},
        packing=tokens,
    )


if __name__ == "__main__":
    main()
