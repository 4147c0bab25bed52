"""The page: what is on it and where. What it does is wired in `wiring`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from video_llama.page.examples import Example
from video_llama.page.slots import picture_slot, sound_slot, video_slot
from video_llama.page.texts import CITATION, INTRODUCTION, LIMITS, TERMS
from video_llama.page.view import note_html, seen_html

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
