"""Questions of a JSONL file, checked line by line. Needs no torch."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from video_llama.common.registry import suggestion
from video_llama.datasets.records import likely_encoding, not_utf8
from video_llama.types import MediaKind, RequestError

_KINDS = ("video", "image", "audio")
_MEDIA_KEYS = ("path", "kind", "use_audio", "num_frames", "num_clips")
_KEYS = ("id", "question", *_KINDS, "media", *_MEDIA_KEYS[2:], "options")


@dataclass(frozen=True)
class RequestMedia:
    """A file of a request.

    Attributes:
        path: where it is.
        kind: what to take it for; None: what it is.
        use_audio: whether the sound of a clip is heard.
        num_frames: frames of a clip; None: as configured.
        num_clips: segments of a sound; None: as configured.
    """

    path: Path
    kind: MediaKind | None = None
    use_audio: bool = True
    num_frames: int | None = None
    num_clips: int | None = None


@dataclass(frozen=True)
class BatchRequest:
    """One question.

    Attributes:
        request_id: of the line, or its number.
        question: any text.
        media: in the order in which the prompt lists them.
        options: of `GenerationSettings`.
        error: why it cannot be answered; empty if it may be.
        mark: tells its line from every other one.
    """

    request_id: str | int
    question: str = ""
    media: tuple[RequestMedia, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    mark: str = ""


@dataclass(frozen=True)
class RequestDefaults:
    """What holds where a line does not say otherwise.

    Attributes:
        media_dir: what relative paths are relative to.
        use_audio: whether clips are heard.
        num_frames: frames of a clip.
        num_clips: segments of a sound.
        options: of `GenerationSettings`.
    """

    media_dir: Path
    use_audio: bool = True
    num_frames: int | None = None
    num_clips: int | None = None
    options: dict[str, Any] = field(default_factory=dict)


def read_requests(path: Path, defaults: RequestDefaults) -> list[BatchRequest]:
    """Read the requests of a JSONL file; a line that is none becomes a request with an error.

    Args:
        path: one JSON object a line; empty lines do not count.
        defaults: what holds where a line does not say otherwise.

    Raises:
        RequestError: the file cannot be read, is UTF-16, or holds nothing.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise RequestError(f"{path}: cannot be read: {reason}") from error
    # Every line of it would fail, with a reason that helps nobody.
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise RequestError(not_utf8(path, "JSON"))
    # Escaped, not refused: a few lines in another encoding do not spoil the others.
    lines = data.decode("utf-8-sig", errors="surrogateescape").split("\n")
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise RequestError(f'{path}: it is empty; lines such as {{"question": ...}} expected')
    return [
        replace(_request(number, line, defaults), mark=_mark(line)) for number, line in numbered
    ]


def _mark(line: str) -> str:
    """Hash a line: short, and another one where media or options differ, too."""
    # Of the whole line: the same words about another file are another question.
    content = line.strip().encode("utf-8", errors="surrogateescape")
    return hashlib.sha256(content).hexdigest()[:16]


def _request(number: int, line: str, defaults: RequestDefaults) -> BatchRequest:
    # Bytes again, for an error that names the byte and not its escape.
    raw = line.encode("utf-8", errors="surrogateescape")
    try:
        raw.decode()
        entry = json.loads(line)
    except UnicodeDecodeError as error:
        byte, column = f"{raw[error.start]:#04x}", error.start + 1
        return BatchRequest(
            number,
            error=f"line {number} is not UTF-8: byte {byte} in column {column}; "
            f"{likely_encoding(raw)}",
        )
    except (ValueError, RecursionError) as error:
        return BatchRequest(number, error=f"line {number} is not JSON: {error}")
    if not isinstance(entry, dict):
        return BatchRequest(number, error=f"line {number} is no JSON object")
    # Found before the rest, so that an error can name the line as its author does.
    request_id = number if entry.get("id") is None else entry["id"]
    if isinstance(request_id, bool) or not isinstance(request_id, str | int):
        return BatchRequest(
            number, error=f"id: {request_id!r} given, a text or a whole number expected"
        )
    question = entry.get("question")
    shown = question if isinstance(question, str) else ""
    try:
        _check_keys(entry, _KEYS)
        # What exporters write for an empty cell: as if the key were not there.
        entry = {key: value for key, value in entry.items() if value is not None}
        if not isinstance(question, str) or not question.strip():
            raise RequestError(f"question: {question!r} given, a text that is not empty expected")
        media = tuple(_media_of(entry, defaults))
        options = entry.get("options", {})
        if not isinstance(options, dict):
            raise RequestError("options: a JSON object expected, such as {'temperature': 0}")
    except RequestError as error:
        return BatchRequest(request_id, shown, error=str(error))
    return BatchRequest(request_id, question, media, {**defaults.options, **options})


def _media_of(entry: dict[str, Any], defaults: RequestDefaults) -> list[RequestMedia]:
    listed = entry.get("media", [])
    if not isinstance(listed, list):
        raise RequestError(f"media: {listed!r} given, a list of paths or objects expected")
    given: list[dict[str, Any]] = []
    for kind in _KINDS:
        value = entry.get(kind, [])
        given += [
            {"path": p, "kind": kind} for p in (value if isinstance(value, list) else [value])
        ]
    given += [item if isinstance(item, dict) else {"path": item} for item in listed]
    # What the line says of all its media; an object in `media` may say otherwise.
    shared = {key: entry[key] for key in _MEDIA_KEYS[2:] if key in entry}
    return [_media({**shared, **item}, defaults) for item in given]


def _media(item: dict[str, Any], defaults: RequestDefaults) -> RequestMedia:
    _check_keys(item, _MEDIA_KEYS)
    item = {key: value for key, value in item.items() if value is not None}
    path, kind = item.get("path"), item.get("kind")
    if not isinstance(path, str) or not path:
        raise RequestError(f"path: {path!r} given, the name of a file expected")
    if kind is not None and kind not in _KINDS:
        raise RequestError(f"kind: {kind!r} given, one of {', '.join(_KINDS)} expected")
    use_audio = item.get("use_audio", defaults.use_audio)
    if not isinstance(use_audio, bool):
        raise RequestError(f"use_audio: {use_audio!r} given, true or false expected")
    counts = {}
    for key in ("num_frames", "num_clips"):
        counts[key] = value = item.get(key, getattr(defaults, key))
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise RequestError(f"{key}: {value!r} given, a whole number expected")
    place = defaults.media_dir / path
    return RequestMedia(place, cast("MediaKind | None", kind), use_audio, **counts)


def _check_keys(entry: dict[str, Any], valid: Sequence[str]) -> None:
    for key in entry:
        if key not in valid:
            raise RequestError(f"unknown key {key!r}; {suggestion(key, list(valid))}")
