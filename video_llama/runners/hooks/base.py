"""The moments of a run at which a hook can act."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from video_llama.runners.runner import Runner


class Hook:
    """Does one thing beside the steps of training; every method may be left as it is.

    An update follows every `accum_grad_iters` steps. All processes call the same methods at the
    same steps.
    """

    name = ""
    """Under which a checkpoint holds the hook's state."""

    def start(self, runner: Runner) -> None:
        """Before the first step, with the state of a checkpoint in place."""

    def before_step(self, runner: Runner) -> None:
        """Before a step; `runner.step` steps are done."""

    def after_step(self, runner: Runner) -> None:
        """After forward and backward; `runner.batch` is what they saw."""

    def measure(self, runner: Runner) -> dict[str, float]:
        """This process's figures since the last update, under the same names in every process.

        Their sums over the processes are in `runner.sums` at the next `after_update`.
        """
        return {}

    def after_update(self, runner: Runner) -> None:
        """After the weights were updated, or the update was skipped."""

    def finish(self, runner: Runner) -> None:
        """After the last step, or when the run was stopped in order."""

    def close(self) -> None:
        """At the end, however the run has ended."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values that a resumed run needs; the same in every process."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""


def crossed(before: int, now: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, now]: what is due, where steps come in groups.

    Args:
        before: steps done at the last update.
        now: steps done.
        every: the distance of what is due; 0: never.
    """
    return every > 0 and now // every > before // every
