"""The page as an API: named endpoints for `gradio_client` and for plain HTTP.

A client has a conversation of its own, as a page has. Gradio's page "Use via API" shows the
docstrings.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.events import api

from video_llama.apps.page.layout import visitor_of
from video_llama.apps.page.uploads import Uploads
from video_llama.apps.page.view import item_details, report_details
from video_llama.apps.page.visitors import Conversation, Conversations
from video_llama.types import RequestError, VideoLlamaError


@dataclass(frozen=True)
class Api:
    """The endpoints."""

    conversations: Conversations
    uploads: Uploads
    concurrency: int
    """Most visitors who are served at the same time, here and on the page."""

    def connect(self) -> None:
        """Offer the endpoints in the current `gr.Blocks`."""
        # One queue with the page's events, so that its limit bounds the load of both.
        for endpoint in (self.add_media, self.ask, self.regenerate, self.set_audio):
            api(
                endpoint,
                api_name=endpoint.__name__,
                concurrency_limit=self.concurrency,
                concurrency_id="model",
            )
        for quick in (self.stop, self.undo, self.restart, self.media, self.history, self.report):
            api(quick, api_name=quick.__name__, concurrency_limit=None)

    def add_media(
        self, request: gr.Request, file: gr.FileData, use_audio: bool = True
    ) -> dict[str, Any]:
        """Add a file (`handle_file("clip.mp4")`); returns what the model gets of it."""
        with self._client_errors():
            with_audio = _flag("use_audio", use_audio)
            path = self.uploads.checked(_path(file))
            conversation = self._of(request)
            conversation.add(path, use_audio=with_audio)
            # By path: the file may have been part of the conversation already.
            items = {item.path: item for item in conversation.session.media}
            return item_details(items[path])

    def ask(
        self,
        request: gr.Request,
        question: str,
        temperature: float = 1.0,
        num_beams: int = 1,
        top_p: float = 0.9,
        repetition_penalty: float = 1.0,
        length_penalty: float = 1.0,
        min_new_tokens: int = 1,
        max_new_tokens: int = 300,
        seed: int | None = None,
    ) -> Iterator[str]:
        """Ask; streams the answer, each time as much as there is of it. Seed None: by chance."""
        # Spelt out, because Gradio derives the names of the API from the signature.
        options = {
            "temperature": temperature,
            "num_beams": num_beams,
            "top_p": top_p,
            "repetition_penalty": repetition_penalty,
            "length_penalty": length_penalty,
            "min_new_tokens": min_new_tokens,
            "max_new_tokens": max_new_tokens,
            "seed": seed,
        }
        with self._client_errors():
            yield from _growing(self._of(request).ask(_text(question), **options))

    def regenerate(
        self,
        request: gr.Request,
        temperature: float = 1.0,
        max_new_tokens: int = 300,
        seed: int | None = None,
    ) -> Iterator[str]:
        """Answer the last question again; streams like `/ask`."""
        options = {"temperature": temperature, "max_new_tokens": max_new_tokens, "seed": seed}
        with self._client_errors():
            yield from _growing(self._of(request).regenerate(**options))

    def set_audio(self, request: gr.Request, on: bool) -> list[dict[str, Any]]:
        """Switch the sound of the clips of the conversation; returns all media."""
        with self._client_errors():
            conversation = self._of(request)
            conversation.set_audio(_flag("on", on))
            return [item_details(item) for item in conversation.session.media]

    def stop(self, request: gr.Request) -> str:
        """End the answer that is being written; what was said stays."""
        with self._client_errors():
            self._of(request).session.stop()
        return "stopped"

    def undo(self, request: gr.Request) -> str:
        """Take back the last question and its answer; returns the question."""
        with self._client_errors():
            return self._of(request).undo()

    def restart(self, request: gr.Request) -> str:
        """Forget the conversation and its files."""
        with self._client_errors():
            self._of(request).restart()
        return "forgotten"

    def media(self, request: gr.Request) -> list[dict[str, Any]]:
        """List the files of the conversation: frames, seconds, sound, tokens."""
        with self._client_errors():
            return [item_details(item) for item in self._of(request).session.media]

    def history(self, request: gr.Request) -> list[dict[str, str]]:
        """List the questions and answers so far."""
        with self._client_errors():
            turns = self._of(request).session.history
        return [{"question": turn.question, "answer": turn.answer or ""} for turn in turns]

    def report(self, request: gr.Request) -> dict[str, Any]:
        """Report on the last answer: prompt, token counts, seconds, notices."""
        with self._client_errors():
            return report_details(self._of(request).session.report)

    def _of(self, request: gr.Request) -> Conversation:
        return self.conversations.of(visitor_of(request))

    @contextmanager
    def _client_errors(self) -> Iterator[None]:
        """Raise the engine's errors as those that Gradio hands to the client."""
        try:
            yield
        except VideoLlamaError as error:
            raise gr.Error(self.uploads.message(error), print_exception=False) from error


def _growing(pieces: Iterator[str]) -> Iterator[str]:
    # Gradio's clients take each value for the state so far, not for a piece to append.
    answer = ""
    try:
        for piece in pieces:
            answer += piece
            yield answer
    finally:
        pieces.close()  # type: ignore[attr-defined] # a client that has gone ends the answer


def _text(question: object) -> str:
    if not isinstance(question, str):
        raise RequestError(f"question: {question!r} given, a text expected")
    return question


def _flag(name: str, value: object) -> bool:
    # bool("false") is true: a program that sends a text must learn of it.
    if not isinstance(value, bool):
        raise RequestError(f"{name}: {value!r} given, true or false expected")
    return value


def _path(file: Any) -> str:
    """Return the path in what a client sent for a file."""
    path = file.get("path") if isinstance(file, dict) else getattr(file, "path", file)
    if not isinstance(path, str):
        raise RequestError("file: an uploaded file expected, as handle_file(...) of gradio_client")
    return path
