"""The training loop of the frozen parts, and how their weights and figures are kept."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

CURVE_EVERY = 50
"""Steps whose mean loss is one point of the curve."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a part is trained.

    Attributes:
        steps: of the optimiser.
        learning_rate: after the warm-up; it falls to a tenth along half a cosine.
        warmup: steps over which the learning rate rises from zero.
        weight_decay: of tensors with at least two dimensions.
        clip: largest norm of all gradients together.
    """

    steps: int
    learning_rate: float
    warmup: int = 50
    weight_decay: float = 0.05
    clip: float = 1.0

    def rate(self, step: int) -> float:
        """Learning rate of a step, from 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        share = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * share)))


def fit(
    parameters: Iterable[nn.Parameter],
    loss_at: Callable[[int], Tensor],
    recipe: Recipe,
    *,
    title: str,
) -> dict[str, Any]:
    """Minimise a loss.

    Args:
        parameters: what is trained.
        loss_at: the loss of a step.
        recipe: numbers of the training.
        title: of the progress bar.

    Returns:
        The recipe, the seconds that it took and the curve of the loss.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    vectors = [parameter for parameter in trained if parameter.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))
    began, recent, curve = time.monotonic(), list[float](), list[float]()
    with tqdm(range(recipe.steps), desc=title, mininterval=1.0) as bar:
        for step in bar:
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(step)
            loss = loss_at(step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, recipe.clip)
            optimizer.step()
            recent.append(float(loss.detach()))
            if len(recent) == CURVE_EVERY:
                curve.append(round(sum(recent) / len(recent), 4))
                bar.set_postfix(loss=curve[-1])
                recent.clear()
    return asdict(recipe) | {"seconds": round(time.monotonic() - began), "loss": curve}


def save_half(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors in half precision.

    Args:
        path: a safetensors file; its folder is made.
        tensors: by the names that the original's files have.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    halves = {name: tensor.detach().half().contiguous() for name, tensor in tensors.items()}
    save_file(halves, path, metadata={"format": "pt"})


def save_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write the log and the figures of a part as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
