"""What on the page calls which handler, and how a `View` becomes updates of components."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from video_llama.apps.page.examples import Example
from video_llama.apps.page.handlers import Chosen, Handlers, View
from video_llama.apps.page.layout import Parts
from video_llama.apps.page.view import Message
from video_llama.apps.page.visitors import Progress
from video_llama.types import RequestError

Updates = tuple[Any, ...]
"""One update for each output, in their order."""


def visitor_of(request: gr.Request) -> str:
    """The id of a visitor's page, which the page makes up and nobody else is told.

    Raises:
        RequestError: the request has none.
    """
    if not request.session_hash:
        raise RequestError("the request names no session")
    return request.session_hash


@dataclass(frozen=True)
class Wiring:
    """Connects a page with its handlers.

    Attributes:
        parts: of the page.
        handlers: what they do.
        examples: to begin with.
        files: of the examples, by name.
        concurrency: most visitors who are served at the same time.
    """

    parts: Parts
    handlers: Handlers
    examples: Sequence[Example]
    files: dict[str, Path]
    concurrency: int

    def connect(self) -> None:
        """Wire everything up."""
        parts, options = self.parts, self.parts.options.components
        model: dict[str, Any] = {
            "outputs": self._outputs,
            "concurrency_limit": self.concurrency,
            "concurrency_id": "model",
            "api_visibility": "private",
        }
        reading = model | {"show_progress": "full", "show_progress_on": parts.seen}
        quick: dict[str, Any] = {
            "queue": False,
            "show_progress": "hidden",
            "api_visibility": "private",
        }
        chosen = [parts.audio, *parts.slots]
        asking = [parts.question, *options, *chosen]
        parts.start.click(self._start, chosen, **reading)
        parts.question.submit(self._ask, asking, **reading)
        parts.regenerate.click(self._regenerate, options, **model | {"show_progress": "hidden"})
        parts.audio.input(self._set_audio, [parts.audio], **reading)
        parts.undo.click(self._undo, None, self._outputs, **quick)
        parts.restart.click(self._restart, None, self._outputs, **quick)
        parts.chat.clear(self._restart, None, self._outputs, **quick)
        parts.stop.click(self._stop, None, None, **quick)
        for example, button in zip(self.examples, parts.examples, strict=True):
            chooses = self._chooses(example)
            button.click(chooses, None, [parts.tabs, parts.question, *parts.slots], **quick)

    @property
    def _outputs(self) -> list[gr.Component]:
        parts = self.parts
        return [
            *(parts.chat, parts.seen, parts.note, parts.question, parts.start),
            *(parts.stop, parts.regenerate, parts.undo, *parts.slots),
        ]

    def _start(
        self,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - how Gradio passes it
        *values: Any,
    ) -> Iterator[Updates]:
        chosen = _chosen(*values)
        yield from self._updates(self.handlers.start(visitor_of(request), chosen, _told(progress)))

    def _ask(
        self,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
        *values: Any,
    ) -> Iterator[Updates]:
        names = self.parts.options.names
        box, options, rest = values[0], values[1 : 1 + len(names)], values[1 + len(names) :]
        box = box or {}
        yield from self._updates(
            self.handlers.ask(
                visitor_of(request),
                box.get("text") or "",
                _chosen(*rest, *box.get("files", ())),
                _options(names, options),
                _told(progress),
            )
        )

    def _regenerate(self, request: gr.Request, *values: Any) -> Iterator[Updates]:
        options = _options(self.parts.options.names, values)
        yield from self._updates(self.handlers.regenerate(visitor_of(request), options))

    def _set_audio(
        self,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
        *values: Any,
    ) -> Iterator[Updates]:
        views = self.handlers.set_audio(visitor_of(request), bool(values[0]), _told(progress))
        yield from self._updates(views)

    def _undo(self, request: gr.Request) -> Updates:
        return self._update(next(self.handlers.undo(visitor_of(request))))

    def _restart(self, request: gr.Request) -> Updates:
        return self._update(next(self.handlers.restart(visitor_of(request))))

    def _stop(self, request: gr.Request) -> None:
        self.handlers.stop(visitor_of(request))

    def _chooses(self, example: Example) -> Callable[[], Updates]:
        """What a click on an example does: its file alone is chosen, its question filled in."""
        path = str(self.files[example.file])
        places = {"video": self.parts.video, "picture": self.parts.picture}
        place = places.get(example.slot, self.parts.sound)

        def choose() -> Updates:
            chosen = [path if slot is place else None for slot in self.parts.slots]
            return (gr.Tabs(selected=example.slot), {"text": example.question}, *chosen)

        return choose

    def _updates(self, views: Iterator[View]) -> Iterator[Updates]:
        """Each view as updates of `_outputs`."""
        try:
            for view in views:
                yield self._update(view)
        finally:
            views.close()  # type: ignore[attr-defined] # where Gradio ends the event early

    def _update(self, view: View) -> Updates:
        keep = gr.skip()
        whole = view.turns is not None
        chat = keep if view.chat is None else [_bubble(message) for message in view.chat]
        seen = keep if view.seen is None else view.seen
        note = keep if view.note is None else view.note
        question = keep if view.question is None else {"text": view.question, "files": []}
        start = keep if view.started is None else gr.Button("Add" if view.started else "Start")
        stop = gr.Button(interactive=view.answering)
        usable = bool(view.turns) if whole else not view.answering
        repeat = gr.Button(interactive=usable) if whole or view.answering else keep
        slots = [None if view.cleared else keep] * len(self.parts.slots)
        return (chat, seen, note, question, start, stop, repeat, repeat, *slots)


def _chosen(use_audio: Any, *files: str | None) -> Chosen:
    return Chosen([file for file in files if file], bool(use_audio))


def _options(names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """The engine's options from what stands on the page; the engine judges them."""
    options = dict(zip(names, values, strict=True))
    seed = str(options["seed"] or "").strip()
    options["seed"] = int(seed) if seed.isdecimal() and len(seed) < 20 else seed or None
    return options


def _told(progress: gr.Progress) -> Progress:
    """The engine's progress, shown by Gradio's bar."""
    return lambda share, text: progress(min(share, 1.0), desc=text)


def _bubble(message: Message) -> dict[str, Any]:
    """A message as Gradio takes it; the report becomes a part of its own below the words.

    Gradio puts text that is no Markdown into the page as HTML.
    """
    content: list[Any] = [escape(message["content"], quote=False)]
    if "report" in message:
        content.append(gr.HTML(message["report"]))
    return {"role": message["role"], "content": content}
