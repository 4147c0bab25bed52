"""Results of the studies as tables in the pages, and as a picture of the training curves."""

from __future__ import annotations

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from studies.study.plan import (
    AUDIO,
    NARROW,
    STUDIES,
    WIDE,
    WIDE_AUDIO,
)

Result = dict[str, Any]
"""What `run_study` returns."""
Column = tuple[str, str]
"""Type of question, and what the model was given."""
Shares = dict[tuple[str, str, str, str], list[float]]
"""Share of right answers of each seed, by arm, split, type and condition."""

CONTROLS = ("all", "withheld", "other", "picture", "sound", "shuffled")
CURVES = "scales.png"
"""Name of the picture in docs/."""

_HEARD: tuple[Column, ...] = (
    ("hear", "sound"),
    ("sound_order", "sound"),
    ("silent", "sound"),
    ("hear_nothing", "sound"),
)
_SEEN: tuple[Column, ...] = (
    ("kind", "all"),
    ("colour", "all"),
    ("motion", "all"),
    ("direction", "all"),
    ("order", "all"),
)


def write_result(path: Path, result: Result) -> None:
    """Write a result as JSON with one line for each run."""
    parts = []
    for key, value in result.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            lines = ",\n  ".join(json.dumps(entry) for entry in value)
            parts.append(f" {json.dumps(key)}: [\n  {lines}\n ]")
        else:
            parts.append(f" {json.dumps(key)}: {json.dumps(value)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", "utf-8")


def read_result(path: Path) -> Result:
    """The result that `write_result` wrote."""
    return dict(json.loads(path.read_text("utf-8")))


def result_path(folder: Path, study: str) -> Path:
    """Where the result of a study lies."""
    return folder / f"study_{study}.json"


def fill_page(text: str, results: Path) -> str:
    """A page with the tables of the results between its marks.

    Args:
        text: of the page; `<!-- study:NAME -->` and `<!-- /study:NAME -->` enclose a table.
        results: folder of the results; a table without one says so.

    Raises:
        KeyError: there is no table of that name.
    """

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        return f"<!-- study:{name} -->\n{_block(name, results)}\n<!-- /study:{name} -->"

    return _MARKED.sub(fill, text)


_MARKED = re.compile(
    r"<!-- study:(?P<name>[\w-]+) -->\n.*?<!-- /study:(?P=name) -->", flags=re.DOTALL
)


def _block(name: str, results: Path) -> str:
    study, make = TABLES[name]
    path = result_path(results, study)
    if not path.exists():
        return f"*Not measured yet: `python -m studies.study.__main__ {study}`.*"
    return make(read_result(path))


def split_table(result: Result, split: str) -> str:
    """Scores of `seeds` on one split: a line for each type of question, a column for each control.

    Args:
        result: of the study.
        split: `test`, `test_pairs` or `valid`.
    """
    shares, chances = _shares(result), _chances(result)
    kinds = dict.fromkeys(
        key[2] for key in shares if key[0] == "trained" and key[1] == split and key[3] == "all"
    )
    rows = [["question", "chance", *CONTROLS, "random branches"]]
    for kind in kinds:
        cells = [_cell(shares.get(("trained", split, kind, name))) for name in CONTROLS]
        untrained = _cell(shares.get(("untrained", split, kind, "all")))
        rows.append([f"`{kind}`", _percent(chances[kind]), *cells, untrained])
    return _markdown(rows, note=_note(result))


def arm_table(result: Result, columns: Sequence[Column]) -> str:
    """Scores of a line for each arm.

    Args:
        result: of a study of one split.
        columns: what stands in it.
    """
    study = STUDIES[result["study"]]
    shares, chances = _shares(result), _chances(result)
    split = result["runs"][0]["split"]
    rows = [[study.name, *(_titled(column) for column in columns)]]
    for arm in study.arms:
        cells = [_cell(shares.get((arm.name, split, *column))) for column in columns]
        rows.append([arm.title, *cells])
    guesses = [_percent(chances[kind]) if kind in chances else "" for kind, _ in columns]
    return _markdown([*rows, ["chance", *guesses]], note=_note(result))


def curves_of(result: Result, recipe: str, stage: str) -> tuple[list[int], list[list[float]]]:
    """Steps, and the losses of each seed."""
    logged = [t["stages"][stage]["loss"] for t in result["trainings"] if t["recipe"] == recipe]
    steps = [step for step, _ in logged[0]]
    return steps, [[loss for _, loss in one] for one in logged]


def draw_curves(result: Result, path: Path) -> None:
    """The loss of the audio branch for both initial scales of its positions, stage by stage.

    Args:
        result: of `scales`.
        path: of the PNG.
    """
    from matplotlib.figure import Figure

    stages = AUDIO.stages()
    figure = Figure(figsize=(8, 3), layout="constrained")
    for axes, stage in zip(figure.subplots(1, len(stages), sharey=True), stages, strict=True):
        for recipe, std, colour in ((WIDE_AUDIO, WIDE, "C3"), (AUDIO, NARROW, "C0")):
            steps, seeds = curves_of(result, recipe.name, stage.name)
            several = [_smoothed(losses) for losses in seeds]
            for number, losses in enumerate(several):
                label = f"{std:g}" if number == 0 else None
                axes.plot(steps, losses, color=colour, alpha=0.8, linewidth=1, label=label)
        axes.set(title=f"audio branch, stage {stage.number}", xlabel="step", yscale="log")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("training loss")
    figure.axes[0].legend(title="position_init_std")
    figure.savefig(path, dpi=110)


def _smoothed(losses: Sequence[float], width: int = 3) -> list[float]:
    """The mean over neighbours."""
    return [
        statistics.fmean(losses[max(0, at - width // 2) : at + width // 2 + 1])
        for at in range(len(losses))
    ]


def _final_losses(result: Result) -> str:
    rows = [["position_init_std", "after stage 1", "after stage 2"]]
    for recipe, std in ((WIDE_AUDIO, WIDE), (AUDIO, NARROW)):
        cells = []
        for stage in recipe.stages():
            _, seeds = curves_of(result, recipe.name, stage.name)
            last = [statistics.fmean(losses[-3:]) for losses in seeds]
            cells.append(_spread(last, "{:.3f}"))
        rows.append([f"{std:g}", *cells])
    return _markdown(rows, note="Training loss, mean of the last three log lines.")


def _shares(result: Result) -> Shares:
    shares: Shares = defaultdict(list)
    for run in result["runs"]:
        for score in run["scores"]:
            key = (run["arm"], run["split"], score["type"], score["condition"])
            shares[key].append(score["right"] / score["count"])
    return dict(shares)


def _chances(result: Result) -> dict[str, float]:
    scores = (score for run in result["runs"] for score in run["scores"])
    return {score["type"]: score["chance"] for score in scores}


def _cell(shares: Sequence[float] | None) -> str:
    return _spread([100 * share for share in shares], "{:.1f}") if shares else ""


def _spread(values: Sequence[float], form: str) -> str:
    """Mean and standard deviation; of one value only itself."""
    text = form.format(statistics.fmean(values))
    return f"{text} ± {form.format(statistics.stdev(values))}" if len(values) > 1 else text


def _percent(share: float) -> str:
    return f"{100 * share:.0f}"


def _titled(column: Column) -> str:
    kind, condition = column
    return f"`{kind}`" + ("" if condition == "all" else f", {condition} only")


def _note(result: Result) -> str:
    seeds = ", ".join(map(str, result["seeds"]))
    if len(result["seeds"]) == 1:
        return f"Right answers in percent, seed {seeds}."
    return f"Right answers in percent, mean ± standard deviation over the seeds {seeds}."


def _markdown(rows: Sequence[Sequence[str]], *, note: str) -> str:
    head, *body = rows
    rule = ["---", *("---:" for _ in head[1:])]
    lines = (f"| {' | '.join(row)} |" for row in (head, rule, *body))
    return "\n".join([*lines, "", note])


def _seeds(split: str) -> Callable[[Result], str]:
    return lambda result: split_table(result, split)


def _scales(result: Result) -> str:
    return arm_table(result, _HEARD)


def _ablations(result: Result) -> str:
    return arm_table(result, (*_SEEN, *_HEARD[:2]))


def _curves(result: Result) -> str:
    return f"{_final_losses(result)}\n\n![Loss of the audio branch]({CURVES})"


TABLES: dict[str, tuple[str, Callable[[Result], str]]] = {
    "seeds": ("seeds", _seeds("test")),
    "seeds-pairs": ("seeds", _seeds("test_pairs")),
    "scales": ("scales", _scales),
    "scales-curves": ("scales", _curves),
    "ablations": ("ablations", _ablations),
}
"""Name of a table to its study and what makes it."""


def tables_of(result: Result) -> Iterable[str]:
    """Every table that a result has the scores for, to print."""
    splits = dict.fromkeys(run["split"] for run in result["runs"])
    if result["study"] == "seeds":
        return [f"{split}\n\n{split_table(result, split)}" for split in splits]
    makers = [make for study, make in TABLES.values() if study == result["study"]]
    return [make(result) for make in makers]
