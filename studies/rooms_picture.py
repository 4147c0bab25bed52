"""Draw the rooms of the package and what they import: `python -m studies.rooms_picture`.

Writes docs/architecture.svg from the imports of the source files. A room stands above everything
that it imports; an arrow that follows from others is left out. A test compares the file with the
imports.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from tests.sources import LAYERS, import_graph, room

PICTURE = Path(__file__).parents[1] / "docs" / "architecture.svg"
PURPOSES = {
    "quickstart": "data, training, scores",
    "apps": "commands, page, evaluation",
    "synthetic": "clips with known answers",
    "chat": "sessions, answers, batches",
    "config": "YAML to objects",
    "models": "encoders, LLaMA, weights",
    "datasets": "annotations to batches",
    "processors": "files to tensors",
    "runners": "the training loop",
    "text": "all that the LLM reads",
    "common": "files, registry, threads",
    "types": "batches and errors",
}
ORDER = ["runners", "models", "datasets", "processors"]
"""Of the rooms of a layer, from left to right, so that few arrows cross."""

WIDTH, BOX, HEIGHT, GAP = 940, 200, 52, 48


def room_imports() -> dict[str, set[str]]:
    """Return which other rooms each room imports."""
    found: dict[str, set[str]] = {name: set() for layer in LAYERS for name in layer}
    for importer, imported in import_graph().items():
        for module in imported:
            if room(module) != room(importer):
                found[room(importer)].add(room(module))
    return found


def needed_arrows(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Return the imports that do not follow from others (the transitive reduction)."""

    def reachable(start: str) -> set[str]:
        return graph[start].union(*map(reachable, graph[start]))

    return sorted(
        (importer, imported)
        for importer, direct in graph.items()
        for imported in direct
        if not any(imported in reachable(other) for other in direct - {imported})
    )


def places() -> dict[str, tuple[float, float]]:
    """Return the centre of each room's box; a layer is a row, the highest layer the first."""
    centres = {}
    for row, layer in enumerate(reversed(LAYERS)):
        names = sorted(layer, key=lambda name: (ORDER.index(name) if name in ORDER else 0, name))
        for column, name in enumerate(names):
            x = WIDTH * (column + 0.5) / len(names)
            centres[name] = (x, row * (HEIGHT + GAP) + HEIGHT / 2 + 4)
    # Beside the rooms that the arrows over several layers lead past.
    centres["synthetic"] = (WIDTH * 0.85, centres["synthetic"][1])
    return centres


def arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    """Return the line from a box to another: from its foot, or its side within a row."""
    (x, y), (to_x, to_y) = start, end
    foot, head, rows = y + HEIGHT / 2, to_y - HEIGHT / 2 - 5, round((to_y - y) / (HEIGHT + GAP))
    side = to_x + (BOX / 2 + 5) * (1 if x > to_x else -1)
    if rows == 0:
        path = f"M{x + BOX / 2:g},{y:g} L{side:g},{to_y:g}"
    elif rows == 1 or x == to_x:
        middle = (foot + head) / 2
        path = f"M{x:g},{foot:g} C{x:g},{middle:g} {to_x:g},{middle:g} {to_x:g},{head:g}"
    elif rows == 2:  # past the box between them
        path = f"M{x:g},{foot:g} Q{x:g},{to_y:g} {side:g},{to_y:g}"
    else:  # down the right edge
        edge = WIDTH - 6
        path = f"M{x:g},{foot:g} C{edge:g},{foot + 60:g} {edge:g},{foot + 60:g} {edge:g},"
        path += f"{foot + 110:g} L{edge:g},{to_y - 60:g} Q{edge:g},{to_y:g} {side:g},{to_y:g}"
    return f'<path d="{path}" marker-end="url(#head)"/>'


def draw() -> str:
    """Return the picture as the text of an SVG file."""
    graph, centres = room_imports(), places()
    lines = [arrow(centres[a], centres[b]) for a, b in needed_arrows(graph)]
    boxes = []
    for name, (x, y) in centres.items():
        boxes.append(
            f'<rect x="{x - BOX / 2:g}" y="{y - HEIGHT / 2:g}" width="{BOX}" height="{HEIGHT}" '
            f'rx="6"/><text x="{x:g}" y="{y - 3:g}" class="name">{escape(name)}</text>'
            f'<text x="{x:g}" y="{y + 15:g}">{escape(PURPOSES[name])}</text>'
        )
    height = len(LAYERS) * (HEIGHT + GAP) - GAP + 8
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            'font-family="sans-serif" font-size="12" text-anchor="middle">',
            "<style>rect{fill:#eef3fb;stroke:#4a6fa5}path{fill:none;stroke:#777;stroke-width:1.3}"
            ".name{font-weight:bold;font-size:14px}</style>",
            '<defs><marker id="head" viewBox="0 0 8 8" refX="4" refY="4" markerWidth="7" '
            'markerHeight="7" orient="auto"><polygon points="0,0 8,4 0,8" fill="#777"/></marker>'
            "</defs>",
            f'<rect width="{WIDTH}" height="{height}" style="fill:#fff;stroke:none"/>',
            *lines,
            *boxes,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    PICTURE.write_text(draw(), "utf-8")
