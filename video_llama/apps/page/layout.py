"""The page: which components stand on it, and which handler each of them calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from video_llama.apps.page.examples import Example
from video_llama.apps.page.handlers import Chosen, Handlers, View
from video_llama.apps.page.view import Message, note_html, seen_html
from video_llama.apps.page.visitors import Progress
from video_llama.types import RequestError

STYLE = Path(__file__).with_name("style.css")
"""The page's own style sheet."""

PASTE = Path(__file__).with_name("paste.js")
"""A function that the page runs when it is opened."""

ABOUT = Path(__file__).with_name("about.md")
"""Limits, terms and citation: one section under each heading of the second level."""

TITLE = "Video-LLaMA"

INTRODUCTION = """\
<header class="intro"><h1>Video-LLaMA</h1>
<p>An instruction-tuned audio-visual language model: it watches a clip, hears it, and talks about \
it.</p></header>
"""

ACTIONS = ("Stop", "Regenerate", "Undo", "Restart")

Updates = tuple[Any, ...]
"""One update for each of `Components.outputs`, in their order."""


@dataclass(frozen=True)
class Components:
    """The components of the page that events read or change.

    Attributes:
        options: how answers are chosen, by the engine's names.
    """

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
    options: dict[str, gr.Component]
    examples: list[gr.Button]

    @property
    def slots(self) -> list[gr.Component]:
        """The places for files."""
        return [slot for slot in (self.video, self.picture, self.sound) if slot is not None]

    @property
    def outputs(self) -> list[gr.Component]:
        """What a `View` changes."""
        return [
            *(self.chat, self.seen, self.note, self.question, self.start),
            *(self.stop, self.regenerate, self.undo, *self.slots),
        ]


def build(*, hears: bool, notices: Sequence[str], examples: Sequence[Example]) -> Components:
    """Lay out the page inside the current `gr.Blocks`.

    Args:
        hears: whether the model has an audio branch; without one there is nothing about sound.
        notices: what to know about the model.
        examples: to begin with.
    """
    # elem_id: for the style sheet, and for the tests in a browser.
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
                placeholder="Ask here; paste or drop files, too.",
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
    for section in ABOUT.read_text("utf-8").removeprefix("## ").split("\n## "):
        title, _, text = section.partition("\n")
        with gr.Accordion(title, open=False):
            gr.Markdown(text)
    return Components(
        *(video, picture, sound, tabs, audio, start, chat, note, question),
        *(stop, regenerate, undo, restart, seen, options, buttons),
    )


def _slots(hears: bool) -> tuple[gr.Tabs, gr.Video, gr.Image, gr.Audio | None]:
    # Gradio's default buttons include one that hands the file to another server: left out here.
    buttons: list[Any] = ["download"]
    camera = gr.WebcamOptions(mirror=False)
    sound = None
    with gr.Tabs(elem_id="slots") as tabs:
        with gr.Tab("Video", id="video"):
            video = gr.Video(
                sources=["upload", "webcam"],
                webcam_options=camera,
                show_label=False,
                buttons=buttons,
                elem_id="video",
            )
        with gr.Tab("Picture", id="picture"):
            picture = gr.Image(
                type="filepath",
                sources=["upload", "webcam", "clipboard"],
                webcam_options=camera,
                show_label=False,
                buttons=[*buttons, "fullscreen"],
                elem_id="picture",
            )
        if hears:
            with gr.Tab("Sound", id="sound"):
                sound = gr.Audio(
                    type="filepath",
                    sources=["upload", "microphone"],
                    show_label=False,
                    editable=False,
                    buttons=buttons,
                    elem_id="sound",
                )
    for slot in (video, picture, sound):
        if slot is not None:
            # The model gets the file as it was uploaded. Gradio would decode a picture and write
            # it anew, and mirror a recording with the ffmpeg program. A subclass with another
            # `preprocess` would make Gradio write a .pyi beside this file.
            slot.preprocess = _path  # type: ignore[method-assign]
    return tabs, video, picture, sound


def _path(payload: Any) -> str | None:
    return getattr(payload, "path", None)


def _action(name: str) -> gr.Button:
    return gr.Button(
        name,
        variant="stop" if name == "Stop" else "secondary",
        size="md",
        min_width=70,
        interactive=name == "Restart",
        elem_id=name.lower(),
    )


def _example_buttons(examples: Sequence[Example]) -> list[gr.Button]:
    with gr.Row(elem_id="examples"):
        gr.HTML('<p class="heading">Examples</p>', elem_classes="example-heading")
        return [
            gr.Button(example.label, size="sm", min_width=120, elem_classes="example")
            for example in examples
        ]


def _options() -> dict[str, gr.Component]:
    beams = gr.Slider(1, 10, value=1, step=1, label="Beams", info="answers searched at once")
    temperature = gr.Slider(
        0, 2, value=1.0, step=0.1, label="Temperature", info="0: the likeliest answer, always"
    )
    with gr.Accordion("Advanced", open=False, elem_id="advanced"):
        return {
            "num_beams": beams,
            "temperature": temperature,
            "top_p": gr.Slider(
                0.05, 1, value=0.9, step=0.05, label="Top p", info="only the likeliest words"
            ),
            "repetition_penalty": gr.Slider(
                0.5, 3, value=1.0, step=0.05, label="Repetition penalty"
            ),
            "length_penalty": gr.Slider(
                -5, 5, value=1.0, step=0.5, label="Length penalty", info="of beams"
            ),
            "min_new_tokens": gr.Slider(0, 300, value=1, step=1, label="Shortest answer, tokens"),
            "max_new_tokens": gr.Slider(1, 2000, value=300, step=1, label="Longest answer, tokens"),
            # A number box cannot be empty.
            "seed": gr.Textbox(
                label="Seed", info="a whole number; empty: another answer each time"
            ),
        }


@dataclass(frozen=True)
class Events:
    """Connects the components with the handlers.

    Attributes:
        components: of the page.
        handlers: what the events do.
        examples: to begin with, and their files.
        concurrency: most visitors who are served at the same time.
    """

    components: Components
    handlers: Handlers
    examples: Mapping[Example, Path]
    concurrency: int

    def connect(self) -> None:
        """Register every event in the current `gr.Blocks`."""
        page = self.components
        options = list(page.options.values())
        # Whatever runs the model waits in one queue; the rest must work while an answer is written.
        model: dict[str, Any] = {
            "outputs": page.outputs,
            "concurrency_limit": self.concurrency,
            "concurrency_id": "model",
            "api_visibility": "private",
        }
        reading = model | {"show_progress": "full", "show_progress_on": page.seen}
        quick: dict[str, Any] = {
            "queue": False,
            "show_progress": "hidden",
            "api_visibility": "private",
        }
        chosen = [page.audio, *page.slots]
        page.start.click(self._start, chosen, **reading)
        page.question.submit(self._ask, [page.question, *options, *chosen], **reading)
        page.regenerate.click(self._regenerate, options, **model | {"show_progress": "hidden"})
        page.audio.input(self._set_audio, [page.audio], **reading)
        page.undo.click(self._undo, None, page.outputs, **quick)
        page.restart.click(self._restart, None, page.outputs, **quick)
        # The bin of the chat itself would leave the session as it is.
        page.chat.clear(self._restart, None, page.outputs, **quick)
        page.stop.click(self._stop, None, None, **quick)
        filled = [page.tabs, page.question, *page.slots]
        for (example, path), button in zip(self.examples.items(), page.examples, strict=True):
            button.click(self._chooser(example, path), None, filled, **quick)

    def _start(
        self,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - how Gradio passes it
        *values: Any,
    ) -> Updates:
        chosen, report = _chosen(*values), _reporter(progress)
        return self._update(self.handlers.start(visitor_of(request), chosen, report))

    def _ask(
        self,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
        *values: Any,
    ) -> Iterator[Updates]:
        # The order of the inputs in `connect`: question, options, audio switch, slots.
        names = list(self.components.options)
        box, options, rest = values[0] or {}, values[1 : 1 + len(names)], values[1 + len(names) :]
        yield from self._updates(
            self.handlers.ask(
                visitor_of(request),
                box.get("text") or "",
                _chosen(*rest, *box.get("files", ())),
                _engine_options(names, options),
                _reporter(progress),
            )
        )

    def _regenerate(self, request: gr.Request, *values: Any) -> Iterator[Updates]:
        options = _engine_options(list(self.components.options), values)
        yield from self._updates(self.handlers.regenerate(visitor_of(request), options))

    def _set_audio(
        self,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
        *values: Any,
    ) -> Updates:
        on, report = bool(values[0]), _reporter(progress)
        return self._update(self.handlers.set_audio(visitor_of(request), on, report))

    def _undo(self, request: gr.Request) -> Updates:
        return self._update(self.handlers.undo(visitor_of(request)))

    def _restart(self, request: gr.Request) -> Updates:
        return self._update(self.handlers.restart(visitor_of(request)))

    def _stop(self, request: gr.Request) -> None:
        self.handlers.stop(visitor_of(request))

    def _chooser(self, example: Example, path: Path) -> Callable[[], Updates]:
        """Make the event of an example: its file alone is chosen, its question filled in."""
        page = self.components
        slot = {"video": page.video, "picture": page.picture, "sound": page.sound}[example.slot]

        # One file alone: with what was chosen before, the question would be about both.
        def choose() -> Updates:
            files = [str(path) if other is slot else None for other in page.slots]
            return (gr.Tabs(selected=example.slot), {"text": example.question}, *files)

        return choose

    def _updates(self, views: Iterator[View]) -> Iterator[Updates]:
        try:
            for view in views:
                yield self._update(view)
        finally:
            views.close()  # type: ignore[attr-defined] # where Gradio ends the event early

    def _update(self, view: View) -> Updates:
        """Turn a view into an update of each output; what it leaves as it is, is skipped."""
        keep = gr.skip()
        complete = view.turns is not None
        chat = keep if view.chat is None else [_bubble(message) for message in view.chat]
        seen = keep if view.seen is None else view.seen
        note = keep if view.note is None else view.note
        question = keep if view.question is None else {"text": view.question, "files": []}
        start = keep if view.started is None else gr.Button("Add" if view.started else "Start")
        stop = gr.Button(interactive=view.answering)
        # Regenerate and Undo need a turn, and are off while an answer is written.
        usable = bool(view.turns) if complete else not view.answering
        repeat = gr.Button(interactive=usable) if complete or view.answering else keep
        slots = [None if view.cleared else keep] * len(self.components.slots)
        return (chat, seen, note, question, start, stop, repeat, repeat, *slots)


def visitor_of(request: gr.Request) -> str:
    """Return the id of a visitor's page, which the page makes up and only it knows.

    Raises:
        RequestError: the request has none.
    """
    if not request.session_hash:
        raise RequestError("the request names no session")
    return request.session_hash


def _chosen(use_audio: Any, *files: str | None) -> Chosen:
    return Chosen([file for file in files if file], bool(use_audio))


def _engine_options(names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """Return the engine's options from the values on the page; the engine judges them."""
    options = dict(zip(names, values, strict=True))
    seed = str(options["seed"] or "").strip()
    options["seed"] = int(seed) if seed.isdecimal() and len(seed) < 20 else seed or None
    return options


def _reporter(progress: gr.Progress) -> Progress:
    """Make the engine's progress callback move Gradio's bar."""
    return lambda share, text: progress(min(share, 1.0), desc=text)


def _bubble(message: Message) -> dict[str, Any]:
    """Return a message as Gradio takes it; the report becomes a component below the words.

    Gradio puts text that is not Markdown into the page as HTML, hence the escaping.
    """
    content: list[Any] = [escape(message["content"], quote=False)]
    if "report" in message:
        content.append(gr.HTML(message["report"]))
    return {"role": message["role"], "content": content}
