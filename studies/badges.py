"""Draw the badges of the README from the project's own files: `python -m studies.badges`.

Badges of a web service would show what that service believes, and would ask it at each reading.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "badges"
CHARACTER = 6.6
"""Width of a character, pixels; `textLength` makes every font keep it."""
_SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="20" role="img" \
aria-label="{label}: {value}">
<title>{label}: {value}</title>
<rect width="{width}" height="20" rx="3" fill="#444"/>
<path d="M{left} 0h{most}a3 3 0 0 1 3 3v14a3 3 0 0 1-3 3h-{most}z" fill="{colour}"/>
<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">
<text x="8" y="14" textLength="{label_length}">{label}</text>
<text x="{value_at}" y="14" textLength="{value_length}">{value}</text>
</g>
</svg>
"""


def badges() -> dict[str, str]:
    """Return the SVG of each badge, by its file name."""
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    python, licence = (
        re.search(rf'^{key} = "(.+)"$', project, re.MULTILINE)
        for key in ("requires-python", "license")
    )
    if python is None or licence is None:
        raise ValueError("pyproject.toml has no requires-python or license")
    oldest = python[1].removeprefix(">=")
    return {
        "licence.svg": _badge("licence", licence[1], "#2f6f9f"),
        "python.svg": _badge("python", f"{oldest} or newer", "#2f6f9f"),
        # Whole hundreds, so that not every new test draws it anew.
        "tests.svg": _badge("test functions", f"{num_tests() // 100 * 100:,}+", "#2b7a3d"),
    }


def num_tests() -> int:
    """Count the test functions; parameters make several tests of some."""
    trees = (ast.parse(path.read_text("utf-8")) for path in (ROOT / "tests").rglob("test_*.py"))
    return sum(
        isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        for tree in trees
        for node in ast.walk(tree)
    )


def _badge(label: str, value: str, colour: str) -> str:
    label_length, value_length = (round(CHARACTER * len(text)) for text in (label, value))
    left = label_length + 14
    width = left + value_length + 16
    return _SVG.format(
        label=label,
        value=value,
        colour=colour,
        width=width,
        left=left,
        most=width - left - 3,
        label_length=label_length,
        value_at=left + 8,
        value_length=value_length,
    )


def main() -> None:
    """Write every badge."""
    FOLDER.mkdir(exist_ok=True)
    for name, svg in badges().items():
        (FOLDER / name).write_text(svg, "utf-8")


if __name__ == "__main__":
    main()
