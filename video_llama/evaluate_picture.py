"""A picture of scores: every type of question against chance, under every condition."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from video_llama.tasks.scoring import Score
from video_llama.types import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {
    "all": "the clip",
    "withheld": "no media",
    "other": "another clip",
    "picture": "frames only",
    "sound": "sound only",
    "shuffled": "frames only, shuffled",
}
"""What the model is given, in a few words, by condition."""

SUFFIXES = (".png", ".svg", ".pdf")
"""Of the files that can be written."""

# Blue and orange of Okabe and Ito's palette, which people with any colour vision tell apart.
_SCORE, _CHANCE, _GRID = "#0072b2", "#d55e00", "#dddddd"


def check_suffix(path: Path) -> None:
    """Refuse a file that would be of no known format.

    Raises:
        ConfigError: it ends otherwise.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path}: a name that ends with {', '.join(SUFFIXES)} expected")


def write_picture(path: Path, scores: Sequence[Score]) -> None:
    """Draw the scores and write the file.

    Args:
        path: its suffix is one of `SUFFIXES`; its folder exists.
        scores: of any types and conditions; at least one.
    """
    draw_scores(scores).savefig(path, dpi=130)


def draw_scores(scores: Sequence[Score]) -> Figure:
    """A panel for each condition, a line for each type: its share, its interval, and chance.

    Args:
        scores: of any types and conditions; at least one.
    """
    from matplotlib.figure import Figure

    conditions = list(dict.fromkeys(score.condition for score in scores))
    kinds = list(dict.fromkeys(score.type for score in scores))
    counts = {score.type: score.count for score in reversed(scores)}
    size = (3.0 + 1.75 * len(conditions), 1.3 + 0.3 * len(kinds))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(conditions), sharex=True, sharey=True, squeeze=False)[0]
    for panel, condition in zip(panels, conditions, strict=True):
        found = [score for score in scores if score.condition == condition]
        _draw_panel(panel, found, {kind: len(kinds) - row for row, kind in enumerate(kinds)})
        # Names come from files: a dollar sign must not begin a formula.
        panel.set_title(TITLES.get(condition, condition), fontsize=10, parse_math=False)
    labels = [f"{kind} ({counts[kind]})" for kind in kinds]
    panels[0].set_yticks(range(len(kinds), 0, -1), labels, fontsize=9, parse_math=False)
    figure.supxlabel("right answers, percent, with 95 % intervals", fontsize=9)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=2, fontsize=9, frameon=False)
    return figure


def _draw_panel(panel: Axes, scores: Sequence[Score], rows: dict[str, int]) -> None:
    places = [rows[score.type] for score in scores]
    shares = [100 * score.share for score in scores]
    lows = [100 * (score.share - score.interval[0]) for score in scores]
    highs = [100 * (score.interval[1] - score.share) for score in scores]
    # Rounding may leave a distance to the border a hair below nothing.
    reach = [[max(0.0, value) for value in side] for side in (lows, highs)]
    panel.scatter(
        [100 * score.chance for score in scores],
        places,
        marker="|",
        s=130,
        linewidths=2,
        color=_CHANCE,
        label="chance",
    )
    panel.errorbar(
        shares, places, xerr=reach, fmt="o", markersize=5, capsize=2, color=_SCORE, label="score"
    )
    panel.set_xlim(-4, 104)
    panel.set_ylim(0.4, len(rows) + 0.6)
    panel.set_xticks([0, 25, 50, 75, 100])
    panel.tick_params(axis="both", length=0, labelsize=8)
    panel.grid(color=_GRID, linewidth=0.7)
    panel.set_axisbelow(True)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
