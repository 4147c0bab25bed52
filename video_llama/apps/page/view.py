"""What the page shows of a conversation, as HTML and as messages.

Names of files, questions and answers are foreign text: they are escaped here, or handed to a
component that shows them as plain text.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any, Literal

import numpy as np
from PIL import Image

from video_llama.apps.page.visitors import Conversation, Exchange
from video_llama.chat.answer import AnswerReport
from video_llama.chat.media import MediaItem
from video_llama.common.io import shown, without_controls

Message = dict[str, Any]
"""One bubble of the chat: `role`, `content` (plain text), with a question the paths of its `files`,
under an answer the `report` (HTML)."""

NOTHING_SEEN = "Add a clip, a picture or a sound, and look here at what reaches the model."
WRITING = "…"
FROM_TEXT = "answered from text alone, without any file · "
SPECTROGRAM_KEY = (
    "Mel spectrograms: time from left to right, low tones below, loud is bright; an even stripe "
    "at the right end is padding."
)
MAX_PROMPT_SHOWN = 4000
"""Characters of a prompt that are shown under an answer."""

_KINDS = {"video": "Video", "image": "Picture", "audio": "Sound"}


def note_html(text: str, kind: Literal["info", "error"] = "info") -> str:
    """Return a line about what has just happened, which screen readers read out."""
    if not text:
        return ""
    role = "alert" if kind == "error" else "status"
    return f'<div class="note {kind}" role="{role}">{escape(shown(text))}</div>'


def seen_html(items: Sequence[MediaItem]) -> str:
    """Show what the model gets: frames with their seconds, a spectrogram for each segment."""
    if not items:
        return f'<p class="seen-empty">{NOTHING_SEEN}</p>'
    return "".join(map(_item_html, items))


def _item_html(item: MediaItem) -> str:
    name = escape(shown(item.path.name))
    # The page's script sends the path back when the button is pressed; the server looks it up.
    path = escape(str(item.path), quote=True)
    remove = f'<button class="remove" data-file="{path}" aria-label="Remove {name}">Remove</button>'
    title = f"<h3>{_KINDS[item.kind]}: {name}</h3>"
    html = [f'<div class="seen-title">{title}{remove}</div>']
    html += [f'<p class="seen-facts">{_facts(item)}</p>']
    if item.notice:
        html.append(f'<p class="note info">{escape(shown(item.notice))}</p>')
    frames = item.frame_pictures()
    if frames:
        captions = [f"{second:.1f} s" for second in item.frame_seconds] or ["the picture"]
        html.append(_figures("frames", "Frame at", frames, captions, "jpeg"))
    if item.sound_used:
        spans = [f"{begin:.1f}-{end:.1f} s" for begin, end in item.sound_spans]
        pictures = item.spectrogram_pictures()
        html.append(_figures("sounds", "Mel spectrogram of", pictures, spans, "png"))
        html.append(f'<p class="seen-facts">{SPECTROGRAM_KEY}</p>')
    return f'<section class="seen-item">{"".join(html)}</section>'


def _facts(item: MediaItem) -> str:
    """Say what was taken of a file, and how long that took."""
    facts = []
    if item.kind == "video":
        facts.append(_counted(len(item.frame_seconds), "frame"))
    if item.kind != "image":
        segments = _counted(len(item.sound_spans), "sound segment")
        off = "sound switched off" if item.has_sound else "no sound"
        facts.append(segments if item.sound_used else off)
    facts.append(_counted(item.num_tokens, "token"))
    timings = item.timings
    facts.append(f"decoded in {timings['decode']:.2f} s, encoded in {timings['encode']:.2f} s")
    return " · ".join(facts)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _figures(
    kind: str, what: str, pictures: Sequence[np.ndarray], captions: Sequence[str], form: str
) -> str:
    """Return a grid of (H, W, 3) pictures."""
    # Inlined: pictures with an address of their own could be fetched by others.
    figures = "".join(
        f'<figure><img src="{_data_url(picture, form)}" alt="{what} {caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
        for picture, caption in zip(pictures, captions, strict=True)
    )
    return f'<div class="seen-grid {kind}">{figures}</div>'


def _data_url(picture: np.ndarray, form: str) -> str:
    buffer = io.BytesIO()
    # Frames are photos: visible chroma loss would look like a fault of the model's input.
    quality = {"quality": 90, "subsampling": 0} if form == "jpeg" else {}
    Image.fromarray(picture).save(buffer, form, **quality)
    return f"data:image/{form};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def messages(conversation: Conversation) -> list[Message]:
    """Return the bubbles of all turns so far."""
    bubbles: list[Message] = []
    # A turn that is being answered has no exchange yet: it is shown by `open_turn`.
    for turn, exchange in zip(conversation.session.history, conversation.exchanges, strict=False):
        bubbles.append(_question_bubble(turn.question, exchange.media))
        bubbles.append(_answer_bubble(turn.answer or "", exchange))
    return bubbles


def open_turn(question: str, media: Sequence[MediaItem], answer: str) -> list[Message]:
    """Return the bubbles of a turn whose answer is being written."""
    return [_question_bubble(question, media), {"role": "assistant", "content": answer or WRITING}]


def waiting(media: Sequence[MediaItem]) -> list[Message]:
    """Return the bubble of files that no question has come with yet."""
    return [_question_bubble("", media)] if media else []


def _question_bubble(question: str, media: Sequence[MediaItem]) -> Message:
    files = [f"{_KINDS[item.kind]}: {shown(item.path.name)}" for item in media]
    text = "\n".join([*files, *filter(None, [without_controls(question)])])
    return {"role": "user", "content": text, "files": [str(item.path) for item in media]}


def _answer_bubble(answer: str, exchange: Exchange) -> Message:
    words = without_controls(answer) or "(no words)"
    report = report_html(exchange.report, from_text=exchange.from_text)
    return {"role": "assistant", "content": words, "report": report}


def report_html(report: AnswerReport, *, from_text: bool = False) -> str:
    """Return the line under an answer, which opens to the notices and the prompt."""
    notices = "".join(f"<li>{escape(shown(notice))}</li>" for notice in report.notices)
    line = FROM_TEXT * from_text + report_line(report)
    prompt = report.prompt
    if len(prompt) > MAX_PROMPT_SHOWN:
        prompt = f"{prompt[:MAX_PROMPT_SHOWN]} …"
    return (
        f'<details class="report"><summary>{escape(line)}</summary>'
        f"<ul>{notices}</ul><p>What the language model read:</p>"
        f"<pre>{escape(without_controls(prompt))}</pre></details>"
    )


def report_line(report: AnswerReport) -> str:
    """Say in one line how long an answer took."""
    timings = report.timings
    facts = []
    if "first_token" in timings:
        facts.append(f"first word after {timings['first_token']:.2f} s")
    facts.append(f"{timings.get('generate', 0.0):.2f} s for {_counted(report.num_tokens, 'token')}")
    if report.num_tokens:
        facts.append(f"{report.tokens_per_second:.0f} per second")
    # Other visitors are answered token by token in between; less than this nobody notices.
    if timings.get("wait", 0.0) >= 0.05:
        facts.append(f"waited {timings['wait']:.2f} s for others")
    kept = f", {report.num_reused_tokens} kept from before" if report.num_reused_tokens else ""
    facts.append(f"prompt of {_counted(report.num_prompt_tokens, 'token')}{kept}")
    if report.stopped:
        facts.append("stopped")
    elif not report.finished:
        facts.append("cut at the longest length")
    return " · ".join(facts)


def report_details(report: AnswerReport) -> dict[str, Any]:
    """Return the report as plain values: seconds and counts, the notices and the prompt."""
    return {
        "prompt": report.prompt,
        "num_prompt_tokens": report.num_prompt_tokens,
        "num_reused_tokens": report.num_reused_tokens,
        "num_tokens": report.num_tokens,
        "finished": report.finished,
        "stopped": report.stopped,
        "seconds": {name: round(value, 4) for name, value in report.timings.items()},
        "notices": list(report.notices),
    }


def item_details(item: MediaItem) -> dict[str, Any]:
    """Return as plain values what the model gets of a file."""
    return {
        "name": item.path.name,
        "kind": item.kind,
        "frame_seconds": [round(second, 4) for second in item.frame_seconds],
        "has_sound": item.has_sound,
        "sound_used": item.sound_used,
        "sound_seconds": [[round(second, 4) for second in span] for span in item.sound_spans],
        "num_tokens": item.num_tokens,
        "notice": item.notice,
        "seconds": {name: round(value, 4) for name, value in item.timings.items()},
    }
