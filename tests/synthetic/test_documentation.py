"""docs/world.md describes the world that is drawn and written."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from studies.world_picture import main
from tests.reference import ROOT
from video_llama.synthetic.draw import ICONS, RGB
from video_llama.synthetic.language import questions
from video_llama.synthetic.splits import (
    DURATIONS,
    GROWTHS,
    PATHS,
    SIZES,
    SOUND_RANGES,
    SPLITS,
    SWITCH,
    generator,
    sample_scene,
    triples,
)
from video_llama.synthetic.write import SHARES

TEXT = (ROOT / "docs/world.md").read_text("utf-8")


def row(first: str) -> str:
    """The row of a table by its first cell."""
    return next(line for line in TEXT.splitlines() if line.startswith(f"| {first} |"))


def numbers(text: str) -> set[float]:
    return {float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)}


@pytest.mark.parametrize("colour", RGB)
def test_colours_are_as_documented(colour: str) -> None:
    assert row(colour) == f"| {colour} | {', '.join(map(str, RGB[colour]))} |"  # type: ignore[index]


@pytest.mark.parametrize("kind", ["bell", "drum", "bird", "whistle"])
def test_corners_of_looks_are_documented(kind: str) -> None:
    stated = numbers(row(kind))
    corners = [
        abs(round(value, 4))
        for shape in ICONS[kind]  # type: ignore[index]
        if len(shape.points) < 20 and len(shape.points) != 4
        for point in shape.points
        for value in point
    ]
    assert [value for value in corners if value not in stated] == []


def test_ranges_are_documented() -> None:
    stated = numbers(TEXT)
    ranges = [*SIZES.values(), *PATHS.values(), *GROWTHS.values(), DURATIONS]
    assert [value for limits in ranges for value in limits if value not in stated] == []
    assert f"{100 * SWITCH[0]:g} to {100 * SWITCH[1]:g} %" in TEXT
    for name, split in (("train", "train"), ("valid", "valid"), ("test, test_pairs", "test")):
        found = SOUND_RANGES[split]  # type: ignore[index]
        assert found.pitch == found.tempo
        limits = [*found.pitch, *found.loudness, *found.noise]
        assert numbers(row(name)) == {value for pair in limits for value in pair}


def test_splits_are_documented() -> None:
    for split in SPLITS:
        assert f"({len(triples(split))}" in row(f"`{split}`")
        share = {1.0: "N", 0.5: "N/2", 0.25: "N/4"}[SHARES[split]]
        assert row(f"`{split}`").endswith(f"| {share} |")


def test_types_of_questions_are_documented_with_their_chance() -> None:
    for index in range(60):
        scene = sample_scene(0, "test", index)
        for question in questions(scene, generator(index, "test")):
            cells = row(f"`{question.type}`").split(" | ")
            assert cells[-1] == f"1/{len(question.options)} |"
            if not question.type.startswith("hear") and "order" not in question.type:
                assert question.answer in cells[2]


def test_picture_is_small_and_is_the_one_that_the_command_draws(tmp_path: Path) -> None:
    main([str(tmp_path / "world.png")])
    shipped = ROOT / "docs/world.png"
    assert shipped.stat().st_size < 100_000
    drawn, kept = (
        np.asarray(Image.open(path).convert("RGB")).astype(int)
        for path in (tmp_path / "world.png", shipped)
    )
    assert drawn.shape == kept.shape
    assert np.abs(drawn - kept).mean() < 3
