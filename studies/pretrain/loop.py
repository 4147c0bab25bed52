"""The training loop of the frozen parts with its optimiser, and the files that it leaves.

Muon is momentum whose updates are made orthogonal; small transformers learn several times faster.
Source: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from video_llama.common.io import atomic_write

CURVE_EVERY = 50
"""Steps whose mean loss is one point of the curve."""

HIDDEN = (nn.Linear, nn.Conv2d, nn.Conv3d)
"""Modules whose weight is a matrix that Muon trains."""


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """Numbers of a training; they stand in its report."""

    steps: int
    learning_rate: float = 0.02
    """Of the hidden matrices, which Muon trains."""
    other_learning_rate: float = 3e-3
    """Of tables, vectors and everything else, which AdamW trains."""
    warmup: int = 30
    """Steps over which both rates rise from zero; after that they fall along a straight line."""
    last: float = 0.02
    """Share of the learning rates that is left at the end."""
    clip: float = 1.0
    """Largest norm of all gradients together."""

    def share(self, step: int) -> float:
        """Return the factor on the learning rates in a step, which counts from 0."""
        # Down to a small rest instead of zero, so that the last steps still count.
        rise = min(1.0, (step + 1) / self.warmup)
        return rise * (self.last + (1 - self.last) * (1 - step / self.steps))


def fit(
    model: nn.Module, loss_at: Callable[[int], Tensor], settings: FitSettings, *, title: str
) -> dict[str, Any]:
    """Minimise a loss.

    Args:
        model: trained where it requires a gradient.
        loss_at: computes the loss of a step.
        settings: numbers of the training.
        title: of the progress bar.

    Returns:
        The settings, the seconds that it took and the curve of the loss.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizers = _optimizers(model, settings)
    began, recent, curve = time.monotonic(), list[float](), list[float]()
    with tqdm(range(settings.steps), desc=title, mininterval=1.0) as bar:
        for step in bar:
            loss = loss_at(step)
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
                # Both optimisers follow one schedule, each from its own rate.
                for group in optimizer.param_groups:
                    group["lr"] = optimizer.defaults["lr"] * settings.share(step)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, settings.clip)
            for optimizer in optimizers:
                optimizer.step()
            # A mean over many steps: single losses differ too much to draw a curve of them.
            recent.append(float(loss.detach()))
            if len(recent) == CURVE_EVERY:
                curve.append(round(sum(recent) / len(recent), 4))
                bar.set_postfix(loss=curve[-1])
                recent.clear()
    return asdict(settings) | {"seconds": round(time.monotonic() - began), "loss": curve}


def _optimizers(model: nn.Module, settings: FitSettings) -> list[torch.optim.Optimizer]:
    # What maps hidden states to hidden states is for Muon; embeddings, heads and vectors are not.
    matrices = [
        parameter
        for name, module in model.named_modules()
        for key, parameter in module.named_parameters(recurse=False)
        if key == "in_proj_weight"
        or (key == "weight" and isinstance(module, HIDDEN) and not name.endswith("lm_head"))
    ]
    hidden = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in hidden]
    # Frozen parameters are left out, and so is an optimiser that would have none.
    optimizers: list[torch.optim.Optimizer] = []
    if matrices := [p for p in matrices if p.requires_grad]:
        optimizers.append(Muon(matrices, lr=settings.learning_rate))
    if others := [p for p in others if p.requires_grad]:
        rate, betas = settings.other_learning_rate, (0.9, 0.98)
        optimizers.append(torch.optim.AdamW(others, lr=rate, betas=betas, weight_decay=0.0))
    return optimizers


def save_half(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors in half precision as a safetensors file, whose folder is made.

    Args:
        path: of the file.
        tensors: by the names that the original's files have.
    """
    # Half the size of the package: the parts were scored in this precision.
    halves = {name: tensor.detach().half().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as temporary:
        save_file(halves, temporary, metadata={"format": "pt"})


def save_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write the log and the figures of a part as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the odd polynomial that pushes singular values towards 1."""

ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Muon for matrices, in their own precision, with Nesterov momentum and decoupled decay.

    `torch.optim.Muon` iterates in bfloat16, which a CPU emulates so slowly that it takes longer
    than the model.

    Args:
        parameters: of two or more dimensions; all but the first are flattened to one.
        lr: learning rate.
        momentum: share of the mean gradient that is kept.
        weight_decay: times `lr`, the share of the weights that is taken away in a step.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["mean"] = torch.zeros_like(gradient)
        mean = state["mean"].lerp_(gradient, 1 - group["momentum"])
        update = orthogonal(gradient.lerp(mean, group["momentum"]).flatten(1))
        rows, columns = update.shape
        # Tall matrices get longer updates: their outputs then change as much as those of wide ones.
        scale = max(1.0, rows / columns) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update.view_as(parameter), alpha=-group["lr"] * scale)


def orthogonal(matrix: Tensor) -> Tensor:
    """Bring the singular values of a matrix near 1 and keep its directions, by Newton-Schulz."""
    # The iteration multiplies by the smaller of the two Gram matrices.
    wide: Tensor = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-7)
    first, third, fifth = COEFFICIENTS
    for _ in range(ITERATIONS):
        square = wide @ wide.T
        wide = first * wide + (third * square + fifth * square @ square) @ wide
    return wide if len(matrix) <= matrix.shape[1] else wide.T
