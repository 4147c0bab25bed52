"""Filter of the requests to the page, and of what its answers let a browser do.

Gradio's server offers more than this page uses: it fetches addresses for visitors, forwards
requests, and takes paths of files from them. The guard stands in front of it as ASGI middleware
and lets through what the page needs, from browsers that opened the page under its own name.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect

from video_llama.apps.page.options import host_address, host_name

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
"""Every path that the page and `gradio_client` use; all others are answered with 404."""

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
"""With these a browser loads nothing from other servers, whatever is written into the page."""

BUSY = "Too many people are waiting for an answer. Nothing is lost: try again in a moment."

_HEARTBEAT = re.compile(r"/gradio_api/heartbeat/([^/]+)")
_HEADER_PAIRS = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]


class AllowedHosts:
    """The names by which browsers may open the page: loopback, `--server-name`, `--allow-host`.

    The DNS of a foreign name can be pointed at this machine (DNS rebinding). A page under that name
    would then be of the same origin as ours, and could read and ask everything. It cannot choose
    the Host header, which holds the foreign name.

    Args:
        server_name: address that the server listens on. Where it stands for all addresses of the
            machine (`0.0.0.0`), every numeric address is allowed: a number needs no DNS.
        names: further names and addresses.
    """

    def __init__(self, server_name: str, names: Iterable[str] = ()) -> None:
        # --server-name takes an IPv6 address without brackets, too.
        listening = host_address(server_name.strip("[]"))
        own = listening.compressed if listening else host_name(server_name)
        self._all_addresses = listening is not None and listening.is_unspecified
        self._names = {"localhost", own, *map(host_name, names)} - {None}

    def add(self, url: str) -> None:
        """Allow the host of an address, such as that of the public tunnel."""
        self._names.add(host_name(urlsplit(url).netloc))

    def __contains__(self, host: str) -> bool:
        """Return whether the value of a Host header, with or without port, is allowed."""
        name = host_name(host)
        address = name and host_address(name)
        if address:
            return self._all_addresses or address.is_loopback or name in self._names
        return name is not None and name in self._names


class Guard:
    """ASGI middleware.

    Args:
        app: Gradio's server.
        hosts: names by which the page may be opened.
        holds: whether a path is inside of the folder of uploads.
        refusal: of an address and the size of an upload: status and reason, None if it is taken.
        arrive: called with the id of a page that connects.
        leave: called when it disconnects.
    """

    def __init__(
        self,
        app: App,
        *,
        hosts: AllowedHosts,
        holds: Callable[[str], bool],
        refusal: Callable[[str, int | None], tuple[int, str] | None],
        arrive: Callable[[str], None],
        leave: Callable[[str], None],
    ) -> None:
        self._app, self._hosts, self._holds, self._refusal = app, hosts, holds, refusal
        self._arrive, self._leave = arrive, leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page uses no WebSocket; closed unopened it is a 403
            await send({"type": "websocket.close", "code": 1008})
            return
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        # Under a foreign name not even the paths that exist are known.
        fault = self._foreign(scope.get("headers", ())) or self._fault(path)
        if fault:
            await _refuse(send, *fault)
            return
        if scope["method"] == "POST" and path.startswith("/gradio_api/upload"):
            await self._upload(scope, receive, send)
            return
        if scope["method"] == "POST":
            # Files are named in the body, so it is read whole here and replayed for Gradio.
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
        # The heartbeat is a response that never ends: while it lasts the page is open.
        self._arrive(heartbeat[1])
        try:
            await self._app(scope, receive, _protected(send))
        finally:
            self._leave(heartbeat[1])

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take a file, if it is not too much; an upload that breaks off is not an error."""
        (address, _), headers = scope.get("client") or ("", 0), dict(scope.get("headers", ()))
        length = headers.get(b"content-length", b"")
        # Asked before the body is read: a refused upload costs nothing.
        fault = self._refusal(address, int(length) if length.isdigit() else None)
        if fault:
            await _refuse(send, *fault)
            return
        with contextlib.suppress(ClientDisconnect):
            await self._app(scope, receive, _protected(send))

    def _foreign(self, headers: Iterable[tuple[bytes, bytes]]) -> tuple[int, str] | None:
        """Return status and reason if the request was not made for, or not by, this page."""
        pairs = [(name, value.decode("latin-1")) for name, value in headers]
        hosts = [value for name, value in pairs if name == b"host"]
        if len(hosts) != 1 or hosts[0] not in self._hosts:
            given = ascii(", ".join(hosts)[:80]) if hosts else "none"
            return 421, (
                f"Host: {given} given, which is not a name of this page; open it as localhost, or "
                "name the host with --allow-host where the page is started"
            )
        # Browsers name the page that asks. "null" (a sandboxed frame, a file) has no host.
        for name, value in pairs:
            if name == b"origin" and value.partition("://")[2] not in self._hosts:
                return 403, f"Origin: {value[:80]!a} given: another site may not use this page"
        return None

    def _fault(self, path: str) -> tuple[int, str] | None:
        """Return status and reason if the path is not one that the page uses."""
        if not ALLOWED.fullmatch(path):
            return 404, "there is no such page"
        # Starlette has decoded %2e%2e and the like by now.
        _, is_file, file = path.partition("/gradio_api/file=")
        if is_file and not self._holds(file):
            return 403, "there is no such file"
        return None

    def _names_uploads_only(self, body: bytes) -> bool:
        """Return whether every file that a JSON names is an upload; other bodies name none."""
        try:
            return self._is_clean(json.loads(body)) if body else True
        except RecursionError:  # no request of the page is that deep
            return False
        except ValueError:
            return True

    def _is_clean(self, value: object) -> bool:
        if isinstance(value, list):
            return all(map(self._is_clean, value))
        if not isinstance(value, dict):
            return True
        # Gradio takes every object with a path for a file, at any depth.
        path = value.get("path")
        if path is not None and not (isinstance(path, str) and self._holds(path)):
            return False
        return all(map(self._is_clean, value.values()))


async def _body(receive: Receive) -> bytes | None:
    """Read the whole body of a request; None if it is too large."""
    # Counted while it arrives: Content-Length may be missing or wrong.
    chunks, size, more = [], 0, True
    while more:
        message = await receive()
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > MAX_BODY_BYTES:
            return None
        more = message.get("more_body", False)
    return b"".join(chunks)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Make a `receive` that gives a body that was read already."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay


def _protected(send: Send) -> Send:
    """Make a `send` that adds the headers, and says in plain words that too many people wait."""
    held: list[Message] = []

    async def protected(message: Message) -> None:
        if message["type"] == "http.response.start":
            # In the place of Gradio's own headers of these names.
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
    # Gradio's clients show what stands under `detail`.
    body = json.dumps({"detail": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    headers += _HEADER_PAIRS
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
