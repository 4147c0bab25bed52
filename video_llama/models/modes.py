"""Training mode for what trains, and for nothing else."""

from __future__ import annotations

from torch import nn


def set_mode(module: nn.Module, mode: bool) -> None:
    """Set the mode of a module and all of its parts; a part without gradients stays in eval mode.

    Args:
        module: changed in place.
        mode: True for training.
    """
    parameters = list(module.parameters())
    trains = any(parameter.requires_grad for parameter in parameters)
    # A module without parameters, such as dropout, goes with the one that holds it.
    mode = mode and (trains or not parameters)
    module.training = mode
    for child in module.children():
        set_mode(child, mode)
