"""Pictures of the world: repeatable, at any size, and no two things look alike."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from PIL import Image

from video_llama.synthetic.draw import RGB, draw_background, frame_times, render_frames
from video_llama.synthetic.scene import BACKGROUNDS, COLOURS, KINDS, MOTIONS, Scene, Sight
from video_llama.synthetic.splits import generator

EIGHT = [i / 8 for i in range(8)]


def draw(sight: Sight, *, seed: int = 0, size: int = 56, time: float = 0.0) -> np.ndarray:
    return render_frames(Scene(sights=(sight,)), seed, height=size, width=size, times=[time])[0]


def silhouette(frame: np.ndarray, background: np.ndarray) -> np.ndarray:
    """(H, W) bool: where something was drawn."""
    return np.abs(frame.astype(int) - background).max(axis=-1) > 24


def centre(mask: np.ndarray) -> tuple[float, float]:
    """Of the box around what is drawn, as shares of height and width."""
    rows, columns = np.nonzero(mask)
    return (
        (rows.min() + rows.max() + 1) / 2 / mask.shape[0],
        (columns.min() + columns.max() + 1) / 2 / mask.shape[1],
    )


def shape_of(sight: Sight, seed: int, size: int = 56) -> np.ndarray:
    """The silhouette, stretched to 14x14."""
    background = draw_background(Scene(), seed, height=size, width=size)
    mask = silhouette(draw(sight, seed=seed, size=size), background)
    rows, columns = np.nonzero(mask)
    part = Image.fromarray(mask).crop(
        (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    )
    stretched = part.convert("L").resize((14, 14), Image.Resampling.BOX)
    aspect = (rows.max() - rows.min() + 1) / (columns.max() - columns.min() + 1)
    return np.append(np.asarray(stretched).ravel() / 255, 3 * aspect)


def random_sight(kind: str, number: int) -> Sight:
    rng = generator(number, f"test/{kind}")
    return Sight(
        kind=kind,  # type: ignore[arg-type]
        colour=COLOURS[int(rng.integers(6))],
        motion="still",
        size=0.3 + 0.4 * rng.random(),
        x=0.4 + 0.2 * rng.random(),
        y=0.4 + 0.2 * rng.random(),
    )


def test_silhouettes_alone_tell_the_kinds_apart() -> None:
    centroids = {
        kind: np.mean([shape_of(random_sight(kind, i), i) for i in range(8)], axis=0)
        for kind in KINDS
    }
    wrong = []
    for kind, number in product(KINDS, range(100, 115)):
        seen = shape_of(random_sight(kind, number), number)
        nearest = min(centroids, key=lambda name: ((centroids[name] - seen) ** 2).sum())
        wrong += [(kind, nearest)] if nearest != kind else []
    assert wrong == []


@pytest.mark.parametrize("kind", KINDS)
def test_largest_uniform_part_of_a_thing_has_its_colour(kind: str) -> None:
    for number, colour in enumerate(COLOURS):
        sight = replace(random_sight(kind, number), colour=colour, size=0.6)
        background = draw_background(Scene(), number, height=56, width=56)
        frame = draw(sight, seed=number)
        drawn = frame[silhouette(frame, background)].astype(int)
        near = {
            name: (np.abs(drawn - np.array(value)).max(axis=1) < 30).sum()
            for name, value in RGB.items()
        }
        assert max(near, key=lambda name: near[name]) == colour
        assert near[colour] > 0.1 * len(drawn)


def test_same_scene_and_seed_give_the_same_picture() -> None:
    scene = Scene(sights=(random_sight("bird", 1),), background="cluttered")
    first, second, third = (
        render_frames(scene, seed, height=40, width=60, times=EIGHT) for seed in (1, 1, 2)
    )
    assert first.shape == (8, 40, 60, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, second)
    assert not np.array_equal(first, third)


def test_larger_pictures_show_the_same_in_more_detail() -> None:
    for background, kind in product(BACKGROUNDS, KINDS):
        scene = Scene(sights=(random_sight(kind, 3),), background=background)
        small, large = (
            render_frames(scene, 4, height=side, width=side, times=[0.3])[0] for side in (56, 224)
        )
        reduced = np.asarray(Image.fromarray(large).reduce(4)).astype(int)
        assert np.abs(reduced - small).mean() < 4


def test_wide_pictures_do_not_stretch_things() -> None:
    scene = Scene(sights=(Sight(kind="engine", colour="red", motion="still"),))
    frame = render_frames(scene, 0, height=120, width=160, times=[0.0])[0]
    rows, columns = np.nonzero(silhouette(frame, draw_background(scene, 0, height=120, width=160)))
    assert abs((np.ptp(rows) + 1) - (np.ptp(columns) + 1)) <= 2
    assert np.ptp(rows) + 1 == pytest.approx(0.5 * 1.07 * 120, abs=3)


@pytest.mark.parametrize("motion", MOTIONS)
def test_motions_go_where_they_say(motion: str) -> None:
    grows = motion in ("growing", "shrinking")
    sight = Sight(
        kind="bell",
        colour="green",
        motion=motion,  # type: ignore[arg-type]
        speed=2.0 if grows else 0.0 if motion == "still" else 0.35,
    )
    background = draw_background(Scene(), 0, height=112, width=112)
    masks = [silhouette(draw(sight, size=112, time=time), background) for time in EIGHT]
    (top, left), (bottom, right) = centre(masks[0]), centre(masks[-1])
    growth = np.sqrt(masks[-1].sum() / masks[0].sum())
    expected = {"left": (0, -0.35), "right": (0, 0.35), "up": (-0.35, 0), "down": (0.35, 0)}
    assert (bottom - top, right - left) == pytest.approx(expected.get(motion, (0, 0)), abs=0.03)
    sizes = {"growing": 2.0, "shrinking": 0.5}
    assert growth == pytest.approx(sizes.get(motion, 1.0), rel=0.08)


def test_two_things_are_drawn_twice() -> None:
    one = Sight(kind="drum", colour="blue", motion="still", size=0.3)
    for stacked in (False, True):
        frame = draw(replace(one, number=2, stacked=stacked), size=100)
        mask = silhouette(frame, draw_background(Scene(), 0, height=100, width=100))
        assert not mask[45:55, 45:55].any()
        halves = np.array_split(mask, 2, axis=0 if stacked else 1)
        assert halves[0].sum() == pytest.approx(halves[1].sum(), rel=0.05)
        assert halves[0].sum() > 0


def test_the_second_sight_takes_the_place_of_the_first() -> None:
    bell, drum = (Sight(kind=k, colour="red", motion="still") for k in ("bell", "drum"))
    frames = render_frames(
        Scene(sights=(bell, drum), switch=0.45), 0, height=56, width=56, times=EIGHT
    )
    assert np.array_equal(frames[3], draw(bell))
    assert np.array_equal(frames[4], draw(drum))


def test_things_at_the_border_are_cut_and_things_outside_are_not_drawn() -> None:
    background = draw_background(Scene(), 0, height=56, width=56)
    sight = Sight(kind="bird", colour="yellow", motion="still")
    assert silhouette(draw(replace(sight, x=0.0, y=1.0)), background).any()
    assert np.array_equal(draw(replace(sight, x=3.0)), background)


def test_backgrounds_are_muted_and_cluttered_ones_have_shapes() -> None:
    for seed in range(10):
        plain = draw_background(Scene(), seed, height=50, width=70)
        assert plain.shape == (50, 70, 3)
        assert np.ptp(plain.reshape(-1, 3), axis=0).max() == 0
        cluttered = draw_background(Scene(background="cluttered"), seed, height=50, width=70)
        assert len(np.unique(cluttered.reshape(-1, 3), axis=0)) > 4
        assert np.ptp(cluttered.astype(int), axis=2).max() <= 30


def test_frames_are_spread_over_the_duration() -> None:
    assert frame_times(2.0, 4) == [i / 8 for i in range(8)]
    assert len(frame_times(3.5, 12)) == 42
    assert frame_times(0.01, 4) == [0.0]
