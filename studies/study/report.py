"""Results of the studies as tables in the documentation, and as a picture of the loss curves."""

from __future__ import annotations

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from studies.study.definitions import AUDIO, NARROW, STUDIES, WIDE, WIDE_AUDIO

Result = dict[str, Any]
"""A value of `run_study`."""
Column = tuple[str, str]
"""Type of question, and what the model was given."""
Shares = dict[tuple[str, str, str, str], list[float]]
"""Share of right answers of each seed, by arm, split, type and condition."""

CONTROLS = ("all", "withheld", "other", "picture", "sound", "shuffled")
HEADLINE = ("kind", "motion", "hear", "hear, contradictory")
"""Types of questions of the README's table."""
CURVES = "scales.png"
"""Name of the picture in docs/."""

# Sound is asked about alone, because what is heard is mostly what is seen in the same clip.
_HEARD: tuple[Column, ...] = tuple(
    (kind, "sound") for kind in ("hear", "sound_order", "silent", "hear_nothing")
)
_SEEN: tuple[Column, ...] = tuple(
    (kind, "all") for kind in ("kind", "colour", "motion", "direction", "order")
)


def write_result(path: Path, result: Result) -> None:
    """Write a result as JSON with one line for each run."""
    # Results are kept under version control: a line for each run makes differences readable.
    entries = []
    for key, value in result.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            lines = ",\n  ".join(json.dumps(entry) for entry in value)
            entries.append(f" {json.dumps(key)}: [\n  {lines}\n ]")
        else:
            entries.append(f" {json.dumps(key)}: {json.dumps(value)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(entries) + "\n}\n", "utf-8")


def read_result(path: Path) -> Result:
    """Read a file of `write_result`."""
    return dict(json.loads(path.read_text("utf-8")))


def result_path(folder: Path, study: str) -> Path:
    """Return the path of the result of a study."""
    return folder / f"study_{study}.json"


def fill_page(text: str, results: Path) -> str:
    """Put the tables of the results between the marks of a page.

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
        return f"*Not measured yet: `python -m studies.study {study}`.*"
    return make(read_result(path))


def split_table(
    result: Result,
    split: str,
    *,
    kinds: Sequence[str] = (),
    controls: Sequence[str] = CONTROLS,
) -> str:
    """Tabulate `seeds` on one split: types of questions downwards, controls across.

    Args:
        kinds: types of questions to show; default: all that have an answer on the split.
    """
    shares, chances = _shares(result), _chances(result)
    # Types in the order of the scores; those without an answer on a split have no line.
    kinds = kinds or tuple(
        dict.fromkeys(
            key[2] for key in shares if key[0] == "trained" and key[1] == split and key[3] == "all"
        )
    )
    rows = [["question", "chance", *controls, "random branches"]]
    for kind in kinds:
        cells = [_cell(shares.get(("trained", split, kind, name))) for name in controls]
        untrained = _cell(shares.get(("untrained", split, kind, "all")))
        rows.append([f"`{kind}`", _percent(chances[kind]), *cells, untrained])
    return _markdown(rows, note=_note(result))


def arm_table(result: Result, columns: Sequence[Column]) -> str:
    """Tabulate the scores of a study of one split: a line for each arm."""
    study = STUDIES[result["study"]]
    shares, chances = _shares(result), _chances(result)
    split = result["runs"][0]["split"]
    rows = [[study.name, *(_titled(column) for column in columns)]]
    for arm in study.arms:
        cells = [_cell(shares.get((arm.name, split, *column))) for column in columns]
        rows.append([arm.title, *cells])
    guesses = [_percent(chances[kind]) if kind in chances else "" for kind, _ in columns]
    return _markdown([*rows, ["chance", *guesses]], note=_note(result))


def curves_of(result: Result, training: str, stage: str) -> tuple[list[int], list[list[float]]]:
    """Return the logged steps, and the losses of each seed."""
    logged = [t["stages"][stage]["loss"] for t in result["trainings"] if t["recipe"] == training]
    steps = [step for step, _ in logged[0]]
    return steps, [[loss for _, loss in one] for one in logged]


def draw_curves(result: Result, path: Path) -> None:
    """Draw the loss of the audio branch in `scales`, for both initial scales, stage by stage."""
    # Not pyplot: it would keep state and look for a display.
    from matplotlib.figure import Figure

    stages = AUDIO.stages()
    figure = Figure(figsize=(8, 3), layout="constrained")
    for axes, stage in zip(figure.subplots(1, len(stages), sharey=True), stages, strict=True):
        for training, std, colour in ((WIDE_AUDIO, WIDE, "C3"), (AUDIO, NARROW, "C0")):
            steps, seeds = curves_of(result, training.name, stage.name)
            # One label for all seeds of a colour.
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
    """Average over neighbours."""
    return [
        statistics.fmean(losses[max(0, at - width // 2) : at + width // 2 + 1])
        for at in range(len(losses))
    ]


def _final_losses(result: Result) -> str:
    rows = [["position_init_std", "after stage 1", "after stage 2"]]
    for training, std in ((WIDE_AUDIO, WIDE), (AUDIO, NARROW)):
        cells = []
        for stage in training.stages():
            _, seeds = curves_of(result, training.name, stage.name)
            # Single log lines are means of few batches.
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
    """Format mean and standard deviation; of one value only itself."""
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


def _curves(result: Result) -> str:
    return f"{_final_losses(result)}\n\n![Loss of the audio branch]({CURVES})"


TABLES: dict[str, tuple[str, Callable[[Result], str]]] = {
    "headline": (
        "seeds",
        partial(split_table, split="test", kinds=HEADLINE, controls=("all", "withheld", "other")),
    ),
    "seeds": ("seeds", partial(split_table, split="test")),
    "seeds-pairs": ("seeds", partial(split_table, split="test_pairs")),
    "scales": ("scales", partial(arm_table, columns=_HEARD)),
    "scales-curves": ("scales", _curves),
    "ablations": ("ablations", partial(arm_table, columns=(*_SEEN, *_HEARD[:2]))),
}
"""Name of a table to its study and the function that makes it."""


def tables_of(result: Result) -> Iterable[str]:
    """Return every table that a result has the scores for, to print."""
    splits = dict.fromkeys(run["split"] for run in result["runs"])
    if result["study"] == "seeds":
        return [f"{split}\n\n{split_table(result, split)}" for split in splits]
    makers = [make for study, make in TABLES.values() if study == result["study"]]
    return [make(result) for make in makers]
