"""What a request to the page may ask for, and what its answer lets a browser do.

Gradio's server offers more than this page uses: it fetches addresses for visitors, forwards
requests, and takes paths of files from them. The guard stands in front of it as ASGI middleware
and lets through what the page needs.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.requests import ClientDisconnect

# The protocol of ASGI.
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

ALLOWED = re.compile(
    r"/(?:config/?|theme\.css|favicon\.ico|manifest\.json|robots\.txt|login/?|logout/?"
    r"|(?:assets|static|svelte)/.*"
    r"|gradio_api/(?:info/?|openapi\.json|token/?|app_id/?|user/?|login_check/?|startup-events"
    r"|theme\.css|heartbeat/[^/]+|queue/(?:join|data)|(?:run|api|call|call/v2)/.+|cancel|reset/?"
    r"|upload|upload_progress|file=.+))?"
)
"""Every path that the page and `gradio_client` use; the rest does not exist."""

MAX_BODY_BYTES = 4_000_000
"""Largest request that is not an upload: questions are text."""

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' "
    "'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "X-DNS-Prefetch-Control": "off",
    "Referrer-Policy": "no-referrer",
}
"""A browser asks no other server for anything, whatever is written into the page."""

BUSY = "Too many people are waiting for an answer. Nothing is lost: try again in a moment."

_HEARTBEAT = re.compile(r"/gradio_api/heartbeat/([^/]+)")
_HEADER_PAIRS = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]


class Guard:
    """ASGI middleware.

    Args:
        app: Gradio's server.
        holds: whether a path is inside of the folder of uploads.
        refusal: of an address and the size of an upload: status and reason, None if it is taken.
        arrive: called with the id of a page that connects.
        leave: called when it disconnects.
    """

    def __init__(
        self,
        app: App,
        *,
        holds: Callable[[str], bool],
        refusal: Callable[[str, int | None], tuple[int, str] | None],
        arrive: Callable[[str], None],
        leave: Callable[[str], None],
    ) -> None:
        self._app, self._holds, self._refusal = app, holds, refusal
        self._arrive, self._leave = arrive, leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        fault = self._fault(path)
        if fault:
            await _refuse(send, *fault)
            return
        if scope["method"] == "POST" and path.startswith("/gradio_api/upload"):
            await self._upload(scope, receive, send)
            return
        if scope["method"] == "POST":
            body = await _body(receive)
            if body is None:
                await _refuse(send, 413, f"more than {MAX_BODY_BYTES:,} bytes in one request")
                return
            if not path.startswith("/login") and not self._names_uploads_only(body):
                await _refuse(send, 403, "a file was named that was not uploaded to this page")
                return
            receive = _replayed(body, receive)
        heartbeat = _HEARTBEAT.fullmatch(path)
        if heartbeat is None:
            await self._app(scope, receive, _protected(send))
            return
        self._arrive(heartbeat[1])
        try:
            await self._app(scope, receive, _protected(send))
        finally:
            self._leave(heartbeat[1])

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take a file, if it is not too much; one that breaks off is nothing to report."""
        (address, _), headers = scope.get("client") or ("", 0), dict(scope.get("headers", ()))
        length = headers.get(b"content-length", b"")
        fault = self._refusal(address, int(length) if length.isdigit() else None)
        if fault:
            await _refuse(send, *fault)
            return
        with contextlib.suppress(ClientDisconnect):
            await self._app(scope, receive, _protected(send))

    def _fault(self, path: str) -> tuple[int, str] | None:
        """Status and reason of a refusal; None if the path is fine."""
        if not ALLOWED.fullmatch(path):
            return 404, "there is no such page"
        _, is_file, file = path.partition("/gradio_api/file=")
        if is_file and not self._holds(file):
            return 403, "there is no such file"
        return None

    def _names_uploads_only(self, body: bytes) -> bool:
        """Whether every file that a JSON names is an upload; what is no JSON names none."""
        try:
            return self._is_clean(json.loads(body)) if body else True
        except RecursionError:
            return False
        except ValueError:
            return True

    def _is_clean(self, value: object) -> bool:
        if isinstance(value, list):
            return all(map(self._is_clean, value))
        if not isinstance(value, dict):
            return True
        path = value.get("path")
        if path is not None and not (isinstance(path, str) and self._holds(path)):
            return False
        return all(map(self._is_clean, value.values()))


async def _body(receive: Receive) -> bytes | None:
    """The whole body of a request; None if it is too large."""
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY_BYTES:
            return None
        more = message.get("more_body", False)
    return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body that was read already."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay


def _protected(send: Send) -> Send:
    """A `send` that adds the headers, and tells in plain words that too many people wait."""
    held: list[Message] = []

    async def protected(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = {name.lower().encode() for name in HEADERS}
            headers = [pair for pair in message["headers"] if pair[0].lower() not in own]
            message = {**message, "headers": headers + _HEADER_PAIRS}
            if message["status"] == 503:  # Gradio's only reason for it on a server that runs
                held.append(message)
                return
        elif held:
            if not message.get("more_body", False):
                await _refuse(send, 503, BUSY)
            return
        await send(message)

    return protected


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"detail": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    headers += _HEADER_PAIRS
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
