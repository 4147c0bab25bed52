"""One table and one plot of everything that was measured: `python -m benchmarks.table`.

Reads every file in `benchmarks/results/`, writes the tables `measured` and `estimates` (those of
`benchmarks.costs`) between their marks in docs/speed.md, `docs/speed.png`, and, of cards,
`docs/limits.png`. A file has either
`comparisons` (see `benchmarks.harness`) or a `table` of rows with `what`, `value` and `measured`;
the others have a function below.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import costs

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE, PLOT = ROOT / "docs" / "speed.md", ROOT / "docs" / "speed.png"
HEAD = ("what", "measured", "where")


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        what: was measured.
        value: in words.
        where: device, threads and file.
        ratio: ours over the reference with its smallest and largest value, for the plot.
    """

    what: str
    value: str
    where: str
    ratio: tuple[float, float, float] | None = None


def rows(folder: Path = RESULTS) -> list[Row]:
    """The lines of every result file, by the names of the files."""
    found: list[Row] = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text("utf-8"))
        if "study" in content:  # what is learnt, not how fast: in docs/study.md
            continue
        where = f"{_machine(content)}: [{path.stem}](../benchmarks/results/{path.name})"
        found += _rows_of(path.stem, content, where)
    return found


def _rows_of(name: str, content: dict[str, Any], where: str) -> list[Row]:
    if "comparisons" in content:
        return list(_comparisons(name, content, where))
    if "table" in content:
        return [Row(r["what"], r["value"], r.get("measured", where)) for r in content["table"]]
    if name in KNOWN:
        return list(KNOWN[name](content, where))
    return [Row(name, "see the file", where)]


def _machine(content: dict[str, Any]) -> str:
    machine = content.get("machine", {})
    device = machine.get("device") or "CPU"
    words = ["CPU" if device == "x86_64" else device]
    if threads := machine.get("threads"):
        words.append(f"{threads} thread{'s' if threads > 1 else ''}")
    if load := machine.get("load"):
        words.append(f"load {' to '.join(map(str, load)) if isinstance(load, list) else load}")
    return ", ".join(words)


def _comparisons(name: str, content: dict[str, Any], where: str) -> Iterator[Row]:
    preset = content.get("settings", {}).get("preset", name)
    for one in content["comparisons"]:
        low, high = one["spread"]
        value = f"{one['speedup']:.2f} times as fast ({low:.2f} to {high:.2f})"
        label = f"{preset}: {one['name']}"
        yield Row(label, value, where, (one["speedup"], low, high))


def _data(content: dict[str, Any], where: str) -> Iterator[Row]:
    share = content["speed"]["share_of_bare"]
    value = f"{share['files_1']:.2f} from files, {share['shards_1']:.2f} from shards"
    yield Row("reading 8 frames with transform, against decord alone (CPU time)", value, where)


def _estimate(content: dict[str, Any], where: str) -> Iterator[Row]:
    for one in content["sizes"]:
        flops = one["flops"]["predicted"] / one["flops"]["counted"]
        kept = one["kept_bytes"]["predicted"] / one["kept_bytes"]["saved"]
        low, high = one["ratio_spread"]
        value = (
            f"time of a step {one['ratio']:.2f} ({low:.2f} to {high:.2f}), arithmetic "
            f"{flops:.3f}, kept activations {kept:.2f}"
        )
        yield Row(f"estimate over measurement, {one['size']} size", value, where)


def _start(content: dict[str, Any], where: str) -> Iterator[Row]:
    seconds = content["median_seconds"]
    yield Row(
        "`import video_llama` / `video-llama --help`, the interpreter's own "
        f"{seconds['python']:.2f} s included",
        f"{seconds['import']:.2f} s / {seconds['help']:.2f} s",
        where,
    )
    yield Row(
        f"command to first token, {content['files_mb']} MB of weights on disk; reading them and "
        "importing the libraries alone",
        f"{seconds['first_token_cold']:.1f} s; {seconds['read_cold']:.1f} s and "
        f"{seconds['libraries']:.1f} s",
        where,
    )
    for case, numbers in content["memory"].items():
        what = f"peak host memory of loading over the weights, {case}"
        yield Row(what, f"{numbers['ratio']:.2f} ({numbers['weights_mb']} MB)", where)


def _scaling(content: dict[str, Any], where: str) -> Iterator[Row]:
    one, two = content["processes"]
    yield Row(
        "training step with 2 processes over 1, samples per second (2 cores, gloo)",
        f"{two['samples_per_second'] / one['samples_per_second']:.2f}; "
        f"{two['sent_bytes'] / two['predicted_bytes']:.2f} of the predicted bytes sent",
        where,
    )


KNOWN: dict[str, Callable[[dict[str, Any], str], Iterator[Row]]] = {
    "data": _data,
    "estimate": _estimate,
    "scaling": _scaling,
    "start": _start,
}
"""Files that are no comparisons."""


def markdown(lines: list[Row]) -> str:
    """Return the table of what was measured."""
    cells = [HEAD, ("---",) * len(HEAD), *((row.what, row.value, row.where) for row in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def table_in(text: str, name: str) -> str:
    """Return the table between the marks of a name.

    Raises:
        ValueError: a mark is missing.
    """
    start, end = _marked(text, name)
    return text[start:end].strip()


def with_table(text: str, name: str, table: str) -> str:
    """Return a page with another table between the marks of a name."""
    start, end = _marked(text, name)
    return f"{text[:start]}\n{table}\n{text[end:]}"


def _marked(text: str, name: str) -> tuple[int, int]:
    begin, end = f"<!-- table: {name} -->", f"<!-- /table: {name} -->"
    return text.index(begin) + len(begin), text.index(end)


def plot(lines: list[Row], path: Path) -> None:
    """Speed-ups over the reference arm, with their spread."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    shown = [(row.what, *row.ratio) for row in reversed(lines) if row.ratio]
    names, middles, lows, highs = zip(*shown, strict=True)
    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.3 * len(shown)), layout="constrained")
    axes.hlines(names, lows, highs, color="#88aacc", linewidth=3)
    axes.plot(middles, names, "o", color="#224466", markersize=6)
    axes.axvline(1, color="#cc3311", linewidth=1)
    axes.set_xscale("log")
    ticks = [tick for tick in (0.5, 1, 2, 5, 10, 20, 50) if tick <= 1.1 * max(highs)]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("times as fast as the reference arm (dot: median, line: spread)")
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)


def limits(folder: Path = RESULTS) -> dict[str, float]:
    """Return the shares of the cards' limits of every result file of `benchmarks.gpu`."""
    found = {}
    for path in sorted(folder.glob("gpu_*.json")):
        content = json.loads(path.read_text("utf-8"))
        card = f"{content['machine']['device'] or 'CPU'}, {content['size']}"
        found |= {f"{card}: {name}": share for name, share in content["shares"].items()}
    return found


def plot_limits(shares: dict[str, float], path: Path) -> None:
    """Draw what share of the card's products or bandwidth the figures reach; half is the goal."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.9 + 0.3 * len(shares)), layout="constrained")
    axes = figure.subplots()
    axes.barh([*reversed(shares)], [100 * share for share in reversed(shares.values())])
    axes.axvline(50, color="#cc3311", linewidth=1)
    axes.set(xlim=(0, 100), xlabel="percent of the card's products (steps) or bandwidth (tokens)")
    figure.savefig(path, dpi=130, metadata={"Software": None})


def main() -> None:
    """Rewrite both tables of docs/speed.md and the plot."""
    lines = rows()
    page = with_table(PAGE.read_text("utf-8"), "measured", markdown(lines))
    PAGE.write_text(with_table(page, "estimates", costs.markdown()), "utf-8")
    plot(lines, PLOT)
    if shares := limits():
        plot_limits(shares, PLOT.with_name("limits.png"))


if __name__ == "__main__":
    main()
