"""The page: which components stand on it, and which handler each of them calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from video_llama.apps.page.examples import Example
from video_llama.apps.page.handlers import Chosen, Handlers, View
from video_llama.apps.page.view import Message, note_html, seen_html
from video_llama.types import RequestError

STYLE = Path(__file__).with_name("style.css")
"""The page's own style sheet."""

SCRIPT = Path(__file__).with_name("page.js")
"""A function that the page runs when it is opened."""

ABOUT = Path(__file__).with_name("about.md")
"""Limits, terms and citation: one section under each heading of the second level."""

TITLE = "Video-LLaMA"

REMOVE = """\
element.addEventListener("click", (event) => {
  const button = event.target.closest("button.remove");
  if (button) trigger("click", { file: button.dataset.file });
});
"""
"""Tells the server which file is to be taken out."""

Updates = tuple[Any, ...]
"""One update for each of `Components.outputs`, in their order."""


@dataclass(frozen=True)
class Components:
    """The components of the page that events read or change.

    Attributes:
        options: how answers are chosen, by the engine's names.
        earlier: id of the page that this browser had before it was loaded anew.
    """

    chat: gr.Chatbot
    note: gr.HTML
    question: gr.MultimodalTextbox
    restart: gr.Button
    seen: gr.HTML
    audio: gr.Checkbox
    options: dict[str, gr.Component]
    earlier: gr.BrowserState

    @property
    def outputs(self) -> list[gr.Component]:
        """What a `View` changes."""
        return [self.chat, self.seen, self.note, self.question]


def build(
    *, hears: bool, notices: Sequence[str], examples: Mapping[Example, tuple[Path, Path | None]]
) -> Components:
    """Lay out the page inside the current `gr.Blocks`.

    Args:
        hears: whether the model has an audio branch; without one there is nothing about sound.
        notices: what to know about the model.
        examples: to begin with: the file of each, and a picture to show.
    """
    # elem_id: for the style sheet, and for the tests in a browser.
    with gr.Row(elem_id="top"):
        gr.HTML(
            f"<h1>{TITLE}</h1>" + "".join(map(note_html, notices)), elem_id="intro", min_width=100
        )
        look = gr.Button("What it sees", size="sm", min_width=60, scale=0, elem_id="look")
        restart = gr.Button("New chat", size="sm", min_width=60, scale=0, elem_id="restart")
    with gr.Row(elem_id="columns"):
        with gr.Column(scale=6, min_width=300, elem_id="talk"):
            chat = gr.Chatbot(
                label="Conversation",
                show_label=False,
                render_markdown=False,  # what people and models write is text, and loads nothing
                buttons=["copy", "copy_all"],
                placeholder="Drop a clip, a picture or a sound anywhere, or try one of these.",
                examples=[_card(example, *files) for example, files in examples.items()],
                elem_id="chat",
            )
            note = gr.HTML(elem_id="note")
            question = gr.MultimodalTextbox(
                label="Ask about a clip, a picture or a sound",
                show_label=False,
                placeholder="Ask anything",
                sources=["upload", "microphone"] if hears else ["upload"],
                file_count="multiple",
                autofocus=True,
                max_plain_text_length=1_000_000,
                max_lines=6,
                elem_id="question",
            )
        with gr.Column(scale=3, min_width=280, elem_id="panel"):
            gr.HTML("<h2>What the model sees and hears</h2>")
            seen = gr.HTML(seen_html([]), js_on_load=REMOVE, elem_id="seen")
    # On a narrow screen the panel covers the conversation until it is pressed again.
    look.click(None, js="() => document.querySelector('#columns').classList.toggle('looking')")
    with gr.Sidebar(label="Settings", open=False, position="right", elem_id="drawer"):
        gr.HTML("<h2>Settings</h2>")
        audio = gr.Checkbox(
            value=hears,
            visible=hears,
            label="Audio",
            info="listen to clips, not only watch them",
            elem_id="audio",
        )
        options = _options()
        _about()
    earlier = gr.BrowserState("")
    return Components(chat, note, question, restart, seen, audio, options, earlier)


def _about() -> None:
    for section in ABOUT.read_text("utf-8").removeprefix("## ").split("\n## "):
        title, _, text = section.partition("\n")
        with gr.Accordion(title, open=False):
            gr.Markdown(text)


def _card(example: Example, file: Path, icon: Path | None) -> Any:
    shown = {"icon": str(icon)} if icon else {}
    text = f"{example.label}: {example.question}"
    return {"text": example.question, "display_text": text, "files": [str(file)], **shown}


def _options() -> dict[str, gr.Component]:
    return {
        "temperature": gr.Slider(
            0, 2, value=1.0, step=0.1, label="Temperature", info="0: the likeliest answer, always"
        ),
        "num_beams": gr.Slider(
            1, 10, value=1, step=1, label="Beams", info="answers searched at once"
        ),
        "top_p": gr.Slider(
            0.05, 1, value=0.9, step=0.05, label="Top p", info="only the likeliest words"
        ),
        "repetition_penalty": gr.Slider(0.5, 3, value=1.0, step=0.05, label="Repetition penalty"),
        "length_penalty": gr.Slider(
            -5, 5, value=1.0, step=0.5, label="Length penalty", info="of beams"
        ),
        "min_new_tokens": gr.Slider(0, 300, value=1, step=1, label="Shortest answer, tokens"),
        "max_new_tokens": gr.Slider(1, 2000, value=300, step=1, label="Longest answer, tokens"),
        # A number box cannot be empty.
        "seed": gr.Textbox(label="Seed", info="a whole number; empty: another answer each time"),
    }


@dataclass(frozen=True)
class Events:
    """Connects the components with the handlers.

    Attributes:
        components: of the page.
        handlers: what the events do.
        examples: to begin with, in the order of their cards, and their files.
        concurrency: most visitors who are served at the same time.
    """

    components: Components
    handlers: Handlers
    examples: Mapping[Example, Path]
    concurrency: int

    def connect(self, blocks: gr.Blocks) -> None:
        """Register every event in the current `gr.Blocks`."""
        page = self.components
        options = [page.audio, *page.options.values()]
        # Whatever runs the model waits in one queue; the rest must work while an answer is written.
        model: dict[str, Any] = {
            "outputs": page.outputs,
            "show_progress": "hidden",
            "concurrency_limit": self.concurrency,
            "concurrency_id": "model",
            "api_visibility": "private",
        }
        quick: dict[str, Any] = {
            "queue": False,
            "show_progress": "hidden",
            "api_visibility": "private",
        }
        # "multiple": Enter while an answer is written reaches the server, which says so.
        asking = model | {"trigger_mode": "multiple"}
        page.question.submit(self._ask, [page.question, *options], **asking)
        page.chat.example_select(self._example, options, **model)
        page.chat.retry(self._regenerate, options, **model)
        page.audio.input(self._set_audio, [page.audio], **model)
        page.seen.click(self._remove, None, page.outputs, **quick)
        page.chat.undo(self._undo, None, page.outputs, **quick)
        page.restart.click(self._restart, None, page.outputs, **quick)
        # The bin of the chat itself would leave the session as it is.
        page.chat.clear(self._restart, None, page.outputs, **quick)
        page.question.stop(self._stop, None, None, **quick)
        blocks.load(self._load, [page.earlier], [page.earlier, *page.outputs], **quick)

    def _load(self, request: gr.Request, earlier: str) -> Updates:
        visitor = visitor_of(request)
        if not isinstance(earlier, str) or not earlier:
            return (visitor, *[gr.skip()] * len(self.components.outputs))
        return (visitor, *self._update(self.handlers.resume(visitor, earlier)))

    def _ask(self, request: gr.Request, *values: Any) -> Iterator[Updates]:
        # The order of the inputs in `connect`: question, audio switch, options.
        box, audio, options = values[0] or {}, bool(values[1]), self._engine_options(values[2:])
        chosen, text = Chosen(list(box.get("files", ())), audio), box.get("text") or ""
        yield from self._updates(self.handlers.ask(visitor_of(request), text, chosen, options))

    def _example(
        self, request: gr.Request, event: gr.SelectData, *values: Any
    ) -> Iterator[Updates]:
        index = event.index[0] if isinstance(event.index, list) else event.index
        example, path = list(self.examples.items())[index]
        chosen, options = Chosen([str(path)], bool(values[0])), self._engine_options(values[1:])
        visitor = visitor_of(request)
        yield from self._updates(self.handlers.ask(visitor, example.question, chosen, options))

    def _regenerate(self, request: gr.Request, *values: Any) -> Iterator[Updates]:
        options = self._engine_options(values[1:])
        yield from self._updates(self.handlers.regenerate(visitor_of(request), options))

    def _set_audio(self, request: gr.Request, on: bool) -> Updates:
        return self._update(self.handlers.set_audio(visitor_of(request), bool(on)))

    def _remove(self, request: gr.Request, event: gr.EventData) -> Updates:
        return self._update(self.handlers.remove(visitor_of(request), str(event.file)))

    def _undo(self, request: gr.Request) -> Updates:
        return self._update(self.handlers.undo(visitor_of(request)))

    def _restart(self, request: gr.Request) -> Updates:
        return self._update(self.handlers.restart(visitor_of(request)))

    def _stop(self, request: gr.Request) -> None:
        self.handlers.stop(visitor_of(request))

    def _engine_options(self, values: Sequence[Any]) -> dict[str, Any]:
        return _engine_options(list(self.components.options), values)

    def _updates(self, views: Iterator[View]) -> Iterator[Updates]:
        try:
            for view in views:
                yield self._update(view)
        finally:
            views.close()  # type: ignore[attr-defined] # where Gradio ends the event early

    def _update(self, view: View) -> Updates:
        """Turn a view into an update of each output; what it leaves as it is, is skipped."""
        keep = gr.skip()
        chat = keep if view.chat is None else [_bubble(message) for message in view.chat]
        seen = keep if view.seen is None else view.seen
        note = keep if view.note is None else view.note
        changes: dict[str, Any] = {}
        if view.question is not None:
            changes["value"] = {"text": view.question, "files": []}
        if view.answering is not None:
            changes |= {"submit_btn": not view.answering, "stop_btn": view.answering}
        return (chat, seen, note, gr.MultimodalTextbox(**changes) if changes else keep)


def visitor_of(request: gr.Request) -> str:
    """Return the id of a visitor's page, which the page makes up and only it knows.

    Raises:
        RequestError: the request has none.
    """
    if not request.session_hash:
        raise RequestError("the request names no session")
    return request.session_hash


def _engine_options(names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """Return the engine's options from the values on the page; the engine judges them."""
    options = dict(zip(names, values, strict=True))
    seed = str(options["seed"] or "").strip()
    options["seed"] = int(seed) if seed.isdecimal() and len(seed) < 20 else seed or None
    return options


def _bubble(message: Message) -> dict[str, Any]:
    """Return a message as Gradio takes it; the report becomes a component below the words.

    Gradio puts text that is not Markdown into the page as HTML, hence the escaping.
    """
    content: list[Any] = [{"path": file} for file in message.get("files", ())]
    content.append(escape(message["content"], quote=False))
    if "report" in message:
        content.append(gr.HTML(message["report"]))
    return {"role": message["role"], "content": content}
