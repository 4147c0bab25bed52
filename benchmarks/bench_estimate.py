"""What `video-llama estimate` predicts against what is measured, on the CPU at two sizes.

    python -m benchmarks.bench_estimate [--repeats N]

Arithmetic is compared with torch's own counter. Seconds of a training step of the video branch
are predicted and measured in turns, on weights that are random and in fp32: the prediction measures
the machine anew each time, so that both meet the same neighbours. Memory that the backward pass
keeps is compared with what autograd saves.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import harness
from video_llama.apps.estimate.hardware import on_cpu, this_machine
from video_llama.apps.estimate.measure import BACKWARD, measure_training, meta_model
from video_llama.apps.estimate.plan import seconds_of
from video_llama.apps.estimate.rows import BatchRow, training_rows
from video_llama.common.io import default_config_path, package_file
from video_llama.config.load import load_config
from video_llama.config.schema import Config
from video_llama.models.build import build_video_llama
from video_llama.models.video_llama import VideoLlama
from video_llama.types import IGNORE_INDEX, CaptionBatch

FRAMES, ROWS, CAPTION = 4, 2, "a small dog runs over the green field after a red ball and a cat"
SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "vit": {"embed_dim": 384, "depth": 6, "num_heads": 6},
        "qformer": {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024},
        "llm": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 6},
    },
    "base": {
        "vit": {"embed_dim": 768, "depth": 12, "num_heads": 12},
        "qformer": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
        "llm": {"hidden_size": 1024, "intermediate_size": 2752, "num_hidden_layers": 12},
    },
}
"""`base` has the widths of ViT-B and BERT-base."""


def configuration(size: str, folder: Path) -> Config:
    """The tiny preset at another size, with the video branch to train."""
    sizes, tiny = SIZES[size], package_file("presets/tiny/llama")
    folder.mkdir(exist_ok=True)
    llm = json.loads((tiny / "config.json").read_text()) | sizes["llm"]
    heads = sizes["llm"]["hidden_size"] // 64
    llm |= {"num_attention_heads": heads, "num_key_value_heads": heads}
    (folder / "config.json").write_text(json.dumps(llm))
    (folder / "tokenizer.model").write_bytes((tiny / "tokenizer.model").read_bytes())
    values = {f"vit_config.{key}": value for key, value in sizes["vit"].items()}
    values |= {f"qformer_config.{key}": value for key, value in sizes["qformer"].items()}
    values |= {
        "qformer_config.num_hidden_layers": 12,
        "num_query_token": 32,
        "num_video_query_token": 32,
        "image_size": 112,
        "llama_model": folder,
        "equip_audio_branch": "false",
        "frozen_video_Qformer": "false",
        "frozen_llama_proj": "false",
        "random_init": "true",
    }
    # The tiny preset's own weights have other sizes.
    values |= dict.fromkeys(("vit_ckpt", "q_former_model", "ckpt", "ckpt_2"), "null")
    overrides = [f"model.{key}={value}" for key, value in values.items()]
    overrides += [
        f"run.batch_size_train={ROWS}",
        "datasets.webvid.vis_processor.train.image_size=112",
        f"datasets.webvid.vis_processor.train.n_frms={FRAMES}",
        "datasets.webvid.audio_processor.train=null",
    ]
    return on_cpu(load_config(default_config_path(), overrides))


class Step:
    """A training step of a model, and what is expected of it.

    Args:
        cfg: of `configuration`.
    """

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg
        self.model: VideoLlama = build_video_llama(cfg.model, device="cpu", seed=0).train()
        side = cfg.model.image_size
        pixels = torch.randn(
            ROWS, 3, FRAMES, side, side, generator=torch.Generator().manual_seed(0)
        )
        self.batch = CaptionBatch(pixel_values=pixels, captions=[CAPTION] * ROWS, prompt=None)
        self.cost = measure_training(cfg, meta_model(cfg), self._row(), features_cached=False)

    def _row(self) -> BatchRow:
        """Describe a row of this batch, with its lengths."""
        media = self.cfg.model.num_video_query_token
        ids, labels, _ = self.model.token_sequences(self.batch, media)
        (row,) = training_rows(self.cfg, ids.shape[1] - media)
        return replace(row, labelled=int((labels[0] != IGNORE_INDEX).sum()))

    def run(self) -> None:
        """Forward and backward."""
        self.model(self.batch).loss.backward()
        for _, parameter in self.model.trainable_parameters():
            parameter.grad = None

    def seconds(self) -> float:
        """Of one step, measured."""
        start = time.perf_counter()
        self.run()
        return time.perf_counter() - start

    def predicted_seconds(self) -> float:
        """Of one step, from the machine as it is now."""
        machine = this_machine()
        return sum(sum(seconds_of(cost, machine)) for cost in self.cost.parts.values())

    def flops(self) -> int:
        """Of one step, counted by torch; its counter sees attention only in plain products."""
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self.run()
        return counter.get_total_flops()

    def predicted_flops(self) -> float:
        """Of one step, by the estimate, with the backward pass of attention in plain products."""
        return sum(
            cost.products + cost.attention * (0.8 if name.endswith(BACKWARD) else 1.0)
            for name, cost in self.cost.parts.items()
        )

    def kept_bytes(self) -> int:
        """What autograd saves for the backward pass, weights aside."""
        weights = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        saved: dict[int, int] = {}
        alive = []

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                saved[storage.data_ptr()] = storage.nbytes()
                alive.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self.run()
        return sum(saved.values())

    def predicted_bytes(self) -> float:
        """The same by the estimate, in which the batch itself lives on too."""
        assert self.batch.pixel_values is not None
        return self.cost.kept - self.batch.pixel_values.nbytes


def measure(size: str, repeats: int, folder: Path) -> dict[str, Any]:
    """Both, in turns."""
    step = Step(configuration(size, folder / size))
    step.run()
    load, predicted, measured = os.getloadavg()[0], [], []
    for _ in range(repeats):
        predicted.append(step.predicted_seconds())
        measured.append(step.seconds())
    ratios = [p / m for p, m in zip(predicted, measured, strict=True)]
    return {
        "size": size,
        "sizes": SIZES[size],
        "load": round(load, 1),
        "flops": {"predicted": step.predicted_flops(), "counted": step.flops()},
        "kept_bytes": {"predicted": step.predicted_bytes(), "saved": step.kept_bytes()},
        "seconds": {"predicted": predicted, "measured": measured},
        "ratio": statistics.median(predicted) / statistics.median(measured),
        "ratio_spread": [min(ratios), max(ratios)],
    }


def main() -> None:
    """Measure both sizes and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        rows = [measure(size, args.repeats, Path(folder)) for size in SIZES]
    content = {"machine": harness.machine("cpu"), "rows": ROWS, "frames": FRAMES, "sizes": rows}
    harness.RESULTS.mkdir(exist_ok=True)
    (harness.RESULTS / "estimate.json").write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
