"""The places of the page that take files. Each hands on the file as it was uploaded.

Gradio's own conversions are left out: it would decode a picture and write it anew, and mirror a
recording with the ffmpeg program. The model gets the file itself.


What the page says about itself.

The page: what is on it and where. What it does is wired in `wiring`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr

from video_llama.apps.page.examples import Example
from video_llama.apps.page.view import note_html, seen_html

BUTTONS: list[Any] = ["download"]
"""Gradio's default has one more, which hands the file to another server: that is forbidden here."""

SlotT = TypeVar("SlotT", gr.Video, gr.Image, gr.Audio)


def video_slot() -> gr.Video:
    """A clip: uploaded, recorded or dropped."""
    return _as_uploaded(
        gr.Video(
            sources=["upload", "webcam"],
            webcam_options=gr.WebcamOptions(mirror=False),
            show_label=False,
            buttons=BUTTONS,
            elem_id="video",
        )
    )


def picture_slot() -> gr.Image:
    """A picture: uploaded, taken or pasted."""
    return _as_uploaded(
        gr.Image(
            type="filepath",
            sources=["upload", "webcam", "clipboard"],
            webcam_options=gr.WebcamOptions(mirror=False),
            show_label=False,
            buttons=[*BUTTONS, "fullscreen"],
            elem_id="picture",
        )
    )


def sound_slot() -> gr.Audio:
    """A sound: uploaded, recorded or dropped."""
    return _as_uploaded(
        gr.Audio(
            type="filepath",
            sources=["upload", "microphone"],
            show_label=False,
            editable=False,
            buttons=BUTTONS,
            elem_id="sound",
        )
    )


def _as_uploaded(slot: SlotT) -> SlotT:
    slot.preprocess = _path  # type: ignore[method-assign] # a subclass makes Gradio write a .pyi
    return slot


def _path(payload: Any) -> str | None:
    return getattr(payload, "path", None)


TITLE = "Video-LLaMA"

INTRODUCTION = """\
<header class="intro"><h1>Video-LLaMA</h1>
<p>An instruction-tuned audio-visual language model: it watches a clip, hears it, and talks about \
it.</p></header>
"""

LIMITS = """\
* It makes mistakes: it names things that are not there and misses things that are. A few frames \
and a few seconds of sound reach it, no more; *what the model sees and hears* shows which.
* Its ears were trained on pictures. It hears what usually goes with what it would see.
* It was not made for long films, for reading text in pictures, or for understanding speech.
* An answer is no advice. Do not use it to identify people, or to decide about them.
"""

TERMS = """\
By using this page you agree: the service is a research preview, for non-commercial use only. It \
has few safety measures and may produce offensive content. It must not be used for any illegal, \
harmful, violent, racist or sexual purposes. Hand in only what you may hand in.

The files of a conversation are deleted from this server some minutes after its page is closed or \
*Restart* is pressed; nobody else is shown them.

The code is under the BSD 3-Clause licence. The weights carry their own terms: LLaMA 2 the Llama 2 \
Community License and its acceptable-use policy, Vicuna the terms of LLaMA, ImageBind CC BY-NC 4.0.
"""

CITATION = """\
```bibtex
@article{damonlpsg2023videollama,
  author  = {Zhang, Hang and Li, Xin and Bing, Lidong},
  title   = {Video-LLaMA: An Instruction-tuned Audio-Visual Language Model for Video Understanding},
  journal = {arXiv preprint arXiv:2306.02858},
  year    = {2023}
}
```
"""


STYLE = Path(__file__).with_name("style.css")
"""The page's own style sheet."""

PASTE = Path(__file__).with_name("paste.js")
"""A function that the page runs when it is opened."""

QUESTION_HINT = "Ask here; paste or drop files, too."


@dataclass(frozen=True)
class Options:
    """How answers are chosen; `names` are the engine's."""

    sliders: dict[str, gr.Component]

    @property
    def names(self) -> list[str]:
        """Of the engine's options, in the order of the components."""
        return list(self.sliders)

    @property
    def components(self) -> list[gr.Component]:
        """One for each name."""
        return list(self.sliders.values())


@dataclass(frozen=True)
class Parts:
    """The components of the page, by what they are for."""

    video: gr.Video
    picture: gr.Image
    sound: gr.Audio | None
    tabs: gr.Tabs
    audio: gr.Checkbox
    start: gr.Button
    chat: gr.Chatbot
    note: gr.HTML
    question: gr.MultimodalTextbox
    stop: gr.Button
    regenerate: gr.Button
    undo: gr.Button
    restart: gr.Button
    seen: gr.HTML
    options: Options
    examples: list[gr.Button]

    @property
    def slots(self) -> list[gr.Component]:
        """The places for files."""
        return [slot for slot in (self.video, self.picture, self.sound) if slot is not None]


def build(*, hears: bool, notices: Sequence[str], examples: Sequence[Example]) -> Parts:
    """Lay out the page inside the current `gr.Blocks`.

    Args:
        hears: whether the model has an audio branch; without one there is nothing about sound.
        notices: what to know about the model.
        examples: to begin with.
    """
    gr.HTML(INTRODUCTION + "".join(map(note_html, notices)), elem_id="intro")
    with gr.Row(elem_id="columns"):
        with gr.Column(scale=4, min_width=300, elem_id="inputs"):
            tabs, video, picture, sound = _slots(hears)
            audio = gr.Checkbox(
                value=hears,
                visible=hears,
                label="Audio",
                info="listen to clips, not only watch them",
                elem_id="audio",
            )
            start = gr.Button("Start", variant="primary", elem_id="start")
            buttons = _example_buttons(examples)
            options = _options()
        with gr.Column(scale=6, min_width=320, elem_id="talk"):
            chat = gr.Chatbot(
                show_label=False,
                height=440,
                render_markdown=False,  # what people and models write is text, and loads nothing
                buttons=["copy_all"],
                placeholder="Add a file and press Start, or just ask.",
                elem_id="chat",
            )
            note = gr.HTML(elem_id="note")
            question = gr.MultimodalTextbox(
                show_label=False,
                placeholder=QUESTION_HINT,
                sources=["upload"],
                file_count="multiple",
                max_plain_text_length=1_000_000,
                max_lines=6,
                elem_id="question",
            )
            with gr.Row(elem_id="actions"):
                stop, regenerate, undo, restart = map(_action, ACTIONS)
            with gr.Accordion("What the model sees and hears", open=True, elem_id="seen-box"):
                seen = gr.HTML(seen_html([]), elem_id="seen")
    _about()
    return Parts(
        *(video, picture, sound, tabs, audio, start, chat, note, question),
        *(stop, regenerate, undo, restart, seen, options, buttons),
    )


ACTIONS = ("Stop", "Regenerate", "Undo", "Restart")


def _action(name: str) -> gr.Button:
    return gr.Button(
        name,
        variant="stop" if name == "Stop" else "secondary",
        size="md",
        min_width=70,
        interactive=name == "Restart",
        elem_id=name.lower(),
    )


def _slots(hears: bool) -> tuple[gr.Tabs, gr.Video, gr.Image, gr.Audio | None]:
    sound = None
    with gr.Tabs(elem_id="slots") as tabs:
        with gr.Tab("Video", id="video"):
            video = video_slot()
        with gr.Tab("Picture", id="picture"):
            picture = picture_slot()
        if hears:
            with gr.Tab("Sound", id="sound"):
                sound = sound_slot()
    return tabs, video, picture, sound


def _example_buttons(examples: Sequence[Example]) -> list[gr.Button]:
    with gr.Row(elem_id="examples"):
        gr.HTML('<p class="heading">Examples</p>', elem_classes="example-heading")
        return [
            gr.Button(example.label, size="sm", min_width=120, elem_classes="example")
            for example in examples
        ]


def _options() -> Options:
    beams = gr.Slider(1, 10, value=1, step=1, label="Beams", info="answers searched at once")
    temperature = gr.Slider(
        0, 2, value=1.0, step=0.1, label="Temperature", info="0: the likeliest answer, always"
    )
    with gr.Accordion("Advanced", open=False, elem_id="advanced"):
        top_p = gr.Slider(
            0.05, 1, value=0.9, step=0.05, label="Top p", info="only the likeliest words"
        )
        repetition = gr.Slider(0.5, 3, value=1.0, step=0.05, label="Repetition penalty")
        length = gr.Slider(-5, 5, value=1.0, step=0.5, label="Length penalty", info="of beams")
        shortest = gr.Slider(0, 300, value=1, step=1, label="Shortest answer, tokens")
        longest = gr.Slider(1, 2000, value=300, step=1, label="Longest answer, tokens")
        # A number box cannot be empty.
        seed = gr.Textbox(label="Seed", info="a whole number; empty: another answer each time")
    return Options(
        {
            "num_beams": beams,
            "temperature": temperature,
            "top_p": top_p,
            "repetition_penalty": repetition,
            "length_penalty": length,
            "min_new_tokens": shortest,
            "max_new_tokens": longest,
            "seed": seed,
        }
    )


def _about() -> None:
    with gr.Accordion("Limits of the model", open=False):
        gr.Markdown(LIMITS)
    with gr.Accordion("Terms of use", open=False):
        gr.Markdown(TERMS)
    with gr.Accordion("Citation", open=False):
        gr.Markdown(CITATION)
