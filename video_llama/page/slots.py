"""The places of the page that take files. Each hands on the file as it was uploaded.

Gradio's own conversions are left out: it would decode a picture and write it anew, and mirror a
recording with the ffmpeg program. The model gets the file itself.
"""

from __future__ import annotations

from typing import Any, TypeVar

import gradio as gr

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
