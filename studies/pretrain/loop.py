"""The training loop of the frozen parts, and how their weights and figures are kept."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from studies.pretrain.muon import Muon
from video_llama.common.io import atomic_write

CURVE_EVERY = 50
"""Steps whose mean loss is one point of the curve."""


HIDDEN = (nn.Linear, nn.Conv2d, nn.Conv3d)
"""Modules whose weight is a matrix that Muon trains."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a part is trained.

    Attributes:
        steps: of the optimisers.
        learning_rate: of the hidden matrices, which Muon trains.
        other_learning_rate: of tables, vectors and everything else, which AdamW trains.
        warmup: steps over which both rise from zero; then they fall along a straight line.
        last: share of the learning rates that is left at the end.
        clip: largest norm of all gradients together.
    """

    steps: int
    learning_rate: float = 0.02
    other_learning_rate: float = 3e-3
    warmup: int = 30
    last: float = 0.02
    clip: float = 1.0

    def share(self, step: int) -> float:
        """Share of the learning rates in a step, from 0."""
        rise = min(1.0, (step + 1) / self.warmup)
        return rise * (self.last + (1 - self.last) * (1 - step / self.steps))


def fit(
    model: nn.Module,
    loss_at: Callable[[int], Tensor],
    recipe: Recipe,
    *,
    title: str,
) -> dict[str, Any]:
    """Minimise a loss.

    Args:
        model: what is trained, where it requires a gradient.
        loss_at: the loss of a step.
        recipe: numbers of the training.
        title: of the progress bar.

    Returns:
        The recipe, the seconds that it took and the curve of the loss.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizers = _optimizers(model, recipe)
    began, recent, curve = time.monotonic(), list[float](), list[float]()
    with tqdm(range(recipe.steps), desc=title, mininterval=1.0) as bar:
        for step in bar:
            loss = loss_at(step)
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
                for group in optimizer.param_groups:
                    group["lr"] = optimizer.defaults["lr"] * recipe.share(step)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, recipe.clip)
            for optimizer in optimizers:
                optimizer.step()
            recent.append(float(loss.detach()))
            if len(recent) == CURVE_EVERY:
                curve.append(round(sum(recent) / len(recent), 4))
                bar.set_postfix(loss=curve[-1])
                recent.clear()
    return asdict(recipe) | {"seconds": round(time.monotonic() - began), "loss": curve}


def _optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    matrices = [
        parameter
        for name, module in model.named_modules()
        for key, parameter in module.named_parameters(recurse=False)
        if key == "in_proj_weight"
        or (key == "weight" and isinstance(module, HIDDEN) and not name.endswith("lm_head"))
    ]
    hidden = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in hidden]
    optimizers: list[torch.optim.Optimizer] = []
    if matrices := [p for p in matrices if p.requires_grad]:
        optimizers.append(Muon(matrices, lr=recipe.learning_rate))
    if others := [p for p in others if p.requires_grad]:
        rate, betas = recipe.other_learning_rate, (0.9, 0.98)
        optimizers.append(torch.optim.AdamW(others, lr=rate, betas=betas, weight_decay=0.0))
    return optimizers


def save_half(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors in half precision.

    Args:
        path: a safetensors file; its folder is made.
        tensors: by the names that the original's files have.
    """
    halves = {name: tensor.detach().half().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as temporary:
        save_file(halves, temporary, metadata={"format": "pt"})


def save_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write the log and the figures of a part as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
