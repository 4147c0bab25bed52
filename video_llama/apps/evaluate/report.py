"""What is written of an evaluation: a picture of the scores, and a page of sample clips.

The picture shows every type of question against chance, under every condition. The page shows for a
few clips what the model was given, the question, the truth, and what it said.
"""

from __future__ import annotations

import base64
import html
import io
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from video_llama.apps.evaluate.questions import ClipQuestion
from video_llama.apps.evaluate.scores import Score, ScoredAnswer, score_table
from video_llama.chat.media import MediaItem
from video_llama.common.io import package_file
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
NUM_SAMPLES = 10
"""Clips on a page."""

Picture = np.ndarray[Any, Any]

# Blue and orange of Okabe and Ito's palette, which people with any colour vision tell apart.
_SCORE, _CHANCE, _GRID = "#0072b2", "#d55e00", "#dddddd"


def check_suffix(path: Path) -> None:
    """Refuse a picture of no known format.

    Raises:
        ConfigError: its name ends otherwise.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path}: a name that ends with {', '.join(SUFFIXES)} expected")


def draw_scores(scores: Sequence[Score]) -> Figure:
    """Draw a panel for each condition, a line for each type: share, interval, and chance."""
    from matplotlib.figure import Figure

    # In the order of the table, which the reader has seen before.
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
    # Said once for all panels, which share their axis.
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
    # Chance below the score, where both are at the same place.
    chances = [100 * score.chance for score in scores]
    panel.scatter(chances, places, s=130, color=_CHANCE, label="chance", marker="|", linewidths=2)
    panel.errorbar(
        shares, places, xerr=reach, fmt="o", markersize=5, capsize=2, color=_SCORE, label="score"
    )
    panel.set(xlim=(-4, 104), ylim=(0.4, len(rows) + 0.6), xticks=[0, 25, 50, 75, 100])
    panel.tick_params(axis="both", length=0, labelsize=8)
    panel.grid(color=_GRID, linewidth=0.7)
    panel.set_axisbelow(True)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)


_PAGE, _ARTICLE = (
    Template(package_file(f"apps/evaluate/{name}.html").read_text("utf-8"))
    for name in ("page", "article")
)


def choose_samples(
    questions: Sequence[ClipQuestion], answers: Sequence[ScoredAnswer], *, seed: int
) -> list[ScoredAnswer]:
    """Choose answers about `NUM_SAMPLES` clips, of every type in turn, whether right or wrong.

    Args:
        questions: that were asked.
        answers: to them; those of the first condition are used.
        seed: which ones.
    """
    first = answers[0].condition
    given = {answer.question.item_id: answer for answer in answers if answer.condition == first}
    by_type: dict[str, list[ScoredAnswer]] = defaultdict(list)
    # Answers come in the order of batches: the choice follows that of the questions.
    for question in questions:
        if question.item_id in given:
            by_type[question.type].append(given[question.item_id])
    # A generator of its own: the choice depends on the seed and on nothing else.
    draw = random.Random(seed)
    several = list(by_type.values())
    for group in several:
        draw.shuffle(group)
    draw.shuffle(several)
    chosen: dict[Path, ScoredAnswer] = {}
    # One of each type in turn, and each clip once, so that a page shows variety.
    while any(several) and len(chosen) < NUM_SAMPLES:
        for group in several:
            while group and group[-1].question.path in chosen:
                group.pop()
            if group and len(chosen) < NUM_SAMPLES:
                answer = group.pop()
                chosen[answer.question.path] = answer
    return list(chosen.values())


def write_page(
    path: Path,
    samples: Sequence[tuple[ScoredAnswer, MediaItem]],
    scores: Sequence[Score],
    *,
    seed: int,
) -> None:
    """Write the page as one file, which loads nothing from elsewhere.

    Args:
        path: its folder exists.
        samples: what to show, with the clips as the model took them in.
        scores: of all questions, for the table.
        seed: with which the samples were chosen.
    """
    # Names, questions and answers come from files, and are escaped where they are filled in.
    text = _PAGE.substitute(
        count=len(samples),
        right=sum(answer.is_right for answer, _ in samples),
        seed=seed,
        articles="\n".join(_article(answer, item) for answer, item in samples),
        table=html.escape(score_table(scores)),
    )
    path.write_text(text, "utf-8", errors="xmlcharrefreplace")


def _article(answer: ScoredAnswer, item: MediaItem) -> str:
    question = answer.question
    about = f"{question.path.name} · {question.type}"
    if question.contradictory:
        about += " · sound and picture contradict each other"
    captions = [f"{second:.1f} s" for second in item.frame_seconds]
    # Frames are shown as they are. Spectrograms are noisy: a JPEG is a tenth as long as a PNG.
    frames = [_data_uri(picture, "png", optimize=True) for picture in item.frame_pictures()]
    spans = [f"{begin:.1f} to {end:.1f} s" for begin, end in item.sound_spans]
    sounds = [_data_uri(picture, "jpeg", quality=80) for picture in item.spectrogram_pictures()]
    return _ARTICLE.substitute(
        name="right" if answer.is_right else "wrong",
        mark="✓" if answer.is_right else "✗",
        about=html.escape(about),
        question=html.escape(question.question),
        truth=html.escape(question.answer),
        said=html.escape(answer.answer) or "<i>nothing</i>",
        frames=_strip("frames", "frame at", captions, frames),
        sounds=_strip("sounds", "mel spectrogram,", spans, sounds)
        if sounds
        else '<p class="soft">It has no sound track.</p>',
    )


def _strip(name: str, what: str, captions: Sequence[str], addresses: Sequence[str]) -> str:
    figures = [
        f'<figure><img alt="{what} {caption}" src="{address}">'
        f"<figcaption>{caption}</figcaption></figure>"
        for caption, address in zip(captions, addresses, strict=True)
    ]
    return f'<div class="strip {name}">{"".join(figures)}</div>'


def _data_uri(picture: Picture, kind: str, **options: Any) -> str:
    """Encode (H, W, 3) uint8 as an address that contains the file."""
    content = io.BytesIO()
    Image.fromarray(picture).save(content, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode('ascii')}"
