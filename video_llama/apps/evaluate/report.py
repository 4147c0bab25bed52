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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from video_llama.apps.evaluate.questions import ClipQuestion
from video_llama.apps.evaluate.scores import Score, ScoredAnswer, score_table
from video_llama.chat.media import MediaItem
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

NUM_SAMPLES = 10
"""Clips on a page."""

Picture = np.ndarray[Any, Any]

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
    """Draw a panel for each condition, a line for each type: its share, its interval, and chance.

    Args:
        scores: of any types and conditions; at least one.
    """
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


_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --soft: #595959; --line: #d9d9d9;
  --right: #0072b2; --wrong: #b34700; }
@media (prefers-color-scheme: dark) { :root { --ink: #eee; --paper: #151515; --soft: #a8a8a8;
  --line: #3a3a3a; --right: #56b4e9; --wrong: #ff9d4d; } }
body { font: 16px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1060px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0; } p { margin: .3rem 0; } .soft { color: var(--soft); }
article { border: 1px solid var(--line); border-left: 8px solid; border-radius: 6px;
  padding: .7rem 1rem 1rem; margin: 1.2rem 0; overflow-wrap: anywhere; }
article.right { border-left-color: var(--right); }
article.wrong { border-left-color: var(--wrong); border-left-style: double; }
.mark { float: right; font-weight: 700; padding: 0 .6rem; border-radius: 4px; border: 2px solid; }
.right .mark { color: var(--right); } .wrong .mark { color: var(--wrong); border-style: dashed; }
h2 { font-size: .85rem; font-weight: 400; margin: 0 0 .3rem; color: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .9rem;
  margin: .3rem 0 .7rem; }
dt { color: var(--soft); } dd { margin: 0; font-weight: 600; }
.strip { display: grid; grid-template-columns: repeat(8, minmax(0, 1fr)); gap: 5px;
  margin: .3rem 0; }
figure { margin: 0; } figcaption { font-size: .72rem; color: var(--soft); text-align: center; }
.strip img { width: 100%; display: block; border-radius: 3px; }
.frames img { image-rendering: pixelated; } .sounds img { height: 84px; }
.scroll { overflow-x: auto; } pre { font-size: .8rem; line-height: 1.4; }
@media (max-width: 640px) { .strip { grid-template-columns: repeat(4, minmax(0, 1fr)); } }
"""


@dataclass(frozen=True)
class PageSample:
    """A question with the answer that was given to it."""

    question: ClipQuestion
    answer: ScoredAnswer


def choose_samples(
    questions: Sequence[ClipQuestion],
    answers: Sequence[ScoredAnswer],
    *,
    seed: int,
    count: int = NUM_SAMPLES,
) -> list[PageSample]:
    """Choose questions about as many clips, of every type in turn, whether answered well or not.

    Args:
        questions: that were asked.
        answers: to them; those of the first condition are used.
        seed: which ones.
        count: how many, where there are so many clips.
    """
    condition = answers[0].condition
    given = {answer.item_id: answer for answer in answers if answer.condition == condition}
    by_type: dict[str, list[PageSample]] = defaultdict(list)
    for question in questions:
        if question.item_id in given:
            by_type[question.type].append(PageSample(question, given[question.item_id]))
    # A generator of its own: the choice depends on the seed and on nothing else.
    draw = random.Random(seed)
    several = list(by_type.values())
    for group in several:
        draw.shuffle(group)
    draw.shuffle(several)
    chosen: dict[Path, PageSample] = {}
    # One of each type in turn, and each clip once, so that a page shows variety.
    while any(several) and len(chosen) < count:
        for group in several:
            while group and group[-1].question.path in chosen:
                group.pop()
            if group and len(chosen) < count:
                sample = group.pop()
                chosen[sample.question.path] = sample
    return list(chosen.values())


def write_page(
    path: Path,
    samples: Sequence[tuple[PageSample, MediaItem]],
    scores: Sequence[Score],
    *,
    seed: int,
) -> None:
    """Write the page as one file, which loads nothing from elsewhere.

    Args:
        path: an HTML file; its folder exists.
        samples: what to show, with the clips as the model took them in.
        scores: of all questions, for the table.
        seed: with which the samples were chosen.
    """
    # Everything in one file, and nothing that a browser would load or run.
    right = sum(sample.answer.is_right for sample, _ in samples)
    # Names, questions and answers come from files, and are escaped where they are written.
    articles = "\n".join(_article(sample, item) for sample, item in samples)
    table = html.escape(score_table(scores))
    text = f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>PageSample clips with questions and answers</title>
<style>{_STYLE}</style>
<h1>{len(samples)} sample clips</h1>
<p>{right} of {len(samples)} answers are right. The samples were drawn with seed {seed}, one type of
question after the other, whatever the answers were.</p>
<p class="soft">Frames and spectrograms are what the model takes in, with their seconds. Of a
spectrogram the low tones are below; loud is bright.</p>
{articles}
<h1>All scores</h1>
<p class="soft">Right answers in percent, with 95 % intervals.</p>
<div class="scroll"><pre>{table}</pre></div>
</html>
"""
    path.write_text(text, "utf-8", errors="xmlcharrefreplace")


def _article(sample: PageSample, item: MediaItem) -> str:
    question, answer = sample.question, sample.answer
    name, mark = ("right", "✓ right") if answer.is_right else ("wrong", "✗ wrong")
    about = f"{question.path.name} · {question.type}"
    if question.contradictory:
        about += " · sound and picture contradict each other"
    said = html.escape(answer.answer) or "<i>nothing</i>"
    return f"""<article class="{name}"><span class="mark">{mark}</span>
<h2>{html.escape(about)}</h2>
<dl><dt>Question</dt><dd>{html.escape(question.question)}</dd>
<dt>Truth</dt><dd>{html.escape(question.answer)}</dd>
<dt>Answer</dt><dd>{said}</dd></dl>
{_frames(item)}
{_sounds(item)}
</article>"""


def _frames(item: MediaItem) -> str:
    captions = [f"{second:.1f} s" for second in item.frame_seconds]
    return _strip("frames", "frame at", captions, map(_png, item.frame_pictures()))


def _sounds(item: MediaItem) -> str:
    pictures = item.spectrogram_pictures()
    if not pictures:
        return '<p class="soft">It has no sound track.</p>'
    captions = [f"{begin:.1f} to {end:.1f} s" for begin, end in item.sound_spans]
    return _strip("sounds", "mel spectrogram,", captions, map(_jpeg, pictures))


def _strip(name: str, what: str, captions: Sequence[str], addresses: Iterable[str]) -> str:
    figures = [
        f'<figure><img alt="{what} {caption}" src="{address}">'
        f"<figcaption>{caption}</figcaption></figure>"
        for caption, address in zip(captions, addresses, strict=True)
    ]
    return f'<div class="strip {name}">{"".join(figures)}</div>'


def _png(picture: Picture) -> str:
    """Encode a picture that is shown as it is."""
    return _data_uri(picture, "png", optimize=True)


def _jpeg(picture: Picture) -> str:
    """Encode a noisy picture, a tenth as long."""
    return _data_uri(picture, "jpeg", quality=80)


def _data_uri(picture: Picture, kind: str, **options: Any) -> str:
    """Encode (H, W, 3) uint8 as an address that contains the file."""
    content = io.BytesIO()
    Image.fromarray(picture).save(content, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode('ascii')}"
