"""The model's parts against the original's way of computing them, in one run.

    python -m benchmarks.bench_model                         # tiny preset, seconds
    python -m benchmarks.bench_model --preset 7b             # full-width encoders on a CPU, minutes
    python -m benchmarks.bench_model --preset 7b --device cuda --llm-layers 32

Weights are random. On a CPU the 7B preset runs the full-width encoders in fp32 and a LLaMA of full
width with few layers, because 7B weights in fp32 do not fit into a small machine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import reference
from benchmarks.harness import Comparison, compare, write
from video_llama.common.io import default_config_path, package_file
from video_llama.config.load import load_config
from video_llama.models.build import build_video_llama
from video_llama.models.generation.generate import Row, generate
from video_llama.models.generation.settings import GenerationSettings
from video_llama.models.language_model import causal_loss
from video_llama.models.settings import ModelSettings
from video_llama.models.video_llama import VideoLlama
from video_llama.models.weights.checks import RELEASED_SIZES
from video_llama.types import IGNORE_INDEX

TEXT_LENGTH = 128
"""Tokens of text beside the media, in prompts and in training rows."""
ANSWER_LENGTH = 32
"""Labelled tokens of a training row, and tokens of an answer."""


def settings_of(args: argparse.Namespace, folder: Path) -> ModelSettings:
    """The tiny preset, or the released sizes with random weights."""
    # The original has no option for the length of features.
    tiny = load_config(default_config_path(), ["model.audio_feature_norm=none"]).model
    if args.preset == "tiny":
        return replace(tiny, frozen_video_Qformer=False, frozen_llama_proj=False)
    values = json.loads((package_file("presets/tiny/llama") / "config.json").read_text())
    values |= RELEASED_SIZES["7b"] | {
        "num_key_value_heads": 32,
        "num_hidden_layers": args.llm_layers,
        "vocab_size": 32000,
    }
    (folder / "config.json").write_text(json.dumps(values))
    tokenizer = package_file("presets/tiny/llama") / "tokenizer.model"
    (folder / "tokenizer.model").write_bytes(tokenizer.read_bytes())
    precision = "bf16" if args.device == "cuda" else "fp32"
    return ModelSettings(
        llama_model=str(folder),
        random_init=True,
        vit_precision=precision,
        imagebind_precision=precision,
        precision=precision,
        frozen_video_Qformer=False,
        frozen_llama_proj=False,
    )


class Bench:
    """The inputs, and both arms of every comparison.

    Args:
        model: to measure.
        args: `--frames`, `--batch` and `--repeats` are read.
    """

    def __init__(self, model: VideoLlama, args: argparse.Namespace) -> None:
        self.model = model
        self.args = args
        size, device = model.settings.image_size, model.device
        random = torch.Generator().manual_seed(0)
        self.video = torch.randn(1, 3, args.frames, size, size, generator=random).to(device)
        self.frames = self.video.transpose(1, 2)
        self.audio = torch.randn(1, 8, 1, 128, 204, generator=random).to(device)
        config = model.language_model.config
        shape = (args.batch, TEXT_LENGTH + model.settings.num_video_query_token)
        self.embeds = torch.randn(*shape, config.hidden_size, generator=random).to(
            model.language_model.device, model.language_model.dtype
        )
        self.labels = torch.randint(0, config.vocab_size, shape, generator=random)
        self.labels[:, :-ANSWER_LENGTH] = IGNORE_INDEX
        self.labels = self.labels.to(device)
        self.mask = torch.ones(shape, dtype=torch.bool, device=device)

    def run(self) -> list[Comparison]:
        """Every comparison, the encoders first."""
        model, prompt = self.model, self.embeds[:1]
        return [
            self._compare(
                "encode_video",
                lambda: model.encode_video(self.video),
                lambda: reference.encode_video(model, self.video),
            ),
            self._compare(
                "encode_audio (sound)",
                lambda: model.encode_audio(self.audio, "audio"),
                lambda: reference.encode_audio(model, self.audio, "audio"),
            ),
            self._compare(
                "encode_audio (pictures)",
                lambda: model.encode_audio(self.frames, "vision"),
                lambda: reference.encode_audio(model, self.frames, "vision"),
            ),
            self._compare(
                "prefill", lambda: self._answer(prompt, 1), lambda: reference.prefill(model, prompt)
            ),
            self._compare(
                f"answer of {ANSWER_LENGTH} tokens",
                lambda: self._answer(prompt, ANSWER_LENGTH),
                lambda: reference.answer(model, prompt, ANSWER_LENGTH),
            ),
            self._compare("loss and backward", self._train, self._train_reference, grad=True),
        ]

    def _compare(
        self,
        name: str,
        ours: Callable[[], object],
        original: Callable[[], object],
        *,
        grad: bool = False,
    ) -> Comparison:
        def reference_arm() -> object:
            with reference.original_attention(self.model), torch.set_grad_enabled(grad):
                return original()

        def our_arm() -> object:
            with torch.set_grad_enabled(grad):
                return ours()

        return compare(
            name, our_arm, reference_arm, repeats=self.args.repeats, device=self.args.device
        )

    def _answer(self, prompt: Tensor, length: int) -> list[int]:
        chosen = GenerationSettings(temperature=0, max_new_tokens=length, min_new_tokens=length)
        eos = self.model.language_model.config.eos_token_id
        row = Row(inputs_embeds=prompt[0], settings=chosen, stop_ids=[[eos]])
        for _ in generate(self.model.language_model, [row]):
            pass
        return row.ids

    def _train(self) -> None:
        embeds = self.embeds.detach().requires_grad_()
        loss, _ = causal_loss(self.model.language_model, embeds, self.labels, self.mask)
        loss.backward()

    def _train_reference(self) -> None:
        embeds = self.embeds.detach().requires_grad_()
        reference.loss(self.model, embeds, self.labels, self.mask).backward()


def main() -> None:
    """Measure, print a line per comparison and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--preset", choices=("tiny", "7b"), default="tiny")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--batch", type=int, default=2, help="rows of the training step")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--llm-layers", type=int, default=2, help="layers of the 7B preset's LLM")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_of(args, Path(folder))
        model = build_video_llama(settings, device=args.device, seed=0)
    comparisons = Bench(model, args).run()
    held = sum(parameter.nbytes for parameter in model.parameters()) / 1e6
    towers = sum(reference.UNUSED_TOWERS.values()) * 4 / 1e6 if args.preset == "7b" else 0.0
    print(f"weights: ours {held:.0f} MB, reference {held + towers:.0f} MB (unused towers)")
    write(
        f"model_{args.preset}_{args.device}",
        args.device,
        comparisons,
        settings=vars(args),
        weights_mb={"ours": held, "reference": held + towers},
    )


if __name__ == "__main__":
    main()
