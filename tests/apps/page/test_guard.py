"""The guard lets through what the page needs and nothing else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from video_llama.apps.page.guard import BUSY, MAX_BODY_BYTES, AllowedHosts, Guard
from video_llama.apps.page.options import ServerOptions
from video_llama.apps.page.uploads import Uploads


class Server:
    """A guard before a server that answers everything, and what reached that server."""

    def __init__(self, folder: Path, status: int = 200) -> None:
        self.seen: list[tuple[str, bytes]] = []
        self.visits: list[str] = []
        self.status = status
        self.guard = Guard(
            self.answer,
            hosts=AllowedHosts("127.0.0.1", ["chat.example.org"]),
            holds=Uploads(folder, ServerOptions()).holds,
            refusal=lambda address, size: None if size != 8 else (429, f"{address}: {size}"),
            arrive=lambda visitor: self.visits.append(f"+{visitor}"),
            leave=lambda visitor: self.visits.append(f"-{visitor}"),
        )

    async def answer(self, scope: Any, receive: Any, send: Any) -> None:
        body = (await receive()).get("body", b"")
        self.seen.append((scope["path"], body))
        headers = [(b"content-length", b"2"), (b"x-content-type-options", b"own")]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})

    def ask(
        self,
        path: str,
        *bodies: bytes,
        root: str = "",
        hosts: Sequence[str] = ("127.0.0.1:7860",),
        origin: str | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        parts = [{"body": body, "more_body": True} for body in bodies[:-1]]
        parts.append({"body": bodies[-1] if bodies else b"", "more_body": False})
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", **parts.pop(0)}

        async def send(message: Any) -> None:
            sent.append(message)

        method = "POST" if bodies else "GET"
        length = str(sum(map(len, bodies))).encode()
        scope = {"type": "http", "method": method, "path": root + path, "root_path": root}
        headers = [(b"content-length", length), *((b"host", host.encode()) for host in hosts)]
        headers += [] if origin is None else [(b"origin", origin.encode())]
        scope |= {"client": ("1.2.3.4", 5), "headers": headers}
        asyncio.run(self.guard(scope, receive, send))
        answered = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], answered, b"".join(m["body"] for m in sent[1:])


@pytest.fixture
def server(tmp_path: Path) -> Server:
    (tmp_path / "clip.mp4").write_bytes(b"x")
    return Server(tmp_path)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/config",
        "/theme.css",
        "/assets/index.js",
        "/gradio_api/info",
        "/gradio_api/queue/join",
        "/gradio_api/queue/data",
        "/gradio_api/call/ask/0123",
        "/gradio_api/heartbeat/abc",
        "/gradio_api/upload",
    ],
)
@pytest.mark.parametrize("root", ["", "/behind/a/proxy"])
def test_what_the_page_needs_gets_through(server: Server, path: str, root: str) -> None:
    assert server.ask(path, root=root)[0] == 200
    assert server.seen == [(root + path, b"")]


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/proxy=http://127.0.0.1:1/",
        "/gradio_api/run-history/connect",
        "/gradio_api/vibe-edit",
        "/gradio_api/vibe-code",
        "/gradio_api/process_recording",
        "/gradio_api/deep_link",
        "/gradio_api/component_server",
        "/gradio_api/custom_component/1/x/component/index.js",
        "/gradio_api/stream/a/1/2/playlist.m3u8",
        "/gradio_api/file/etc/passwd",
        "/gradio_api/dev/reload",
        "/gradio_api/profiling/traces",
        "/monitoring",
        "/docs",
        "/openapi.json",
        "/mcp",
        "/file=/etc/passwd",
        "//gradio_api/file=/etc/passwd",
    ],
)
def test_what_it_does_not_need_is_not_there(server: Server, path: str) -> None:
    status, _, body = server.ask(path)
    assert status == 404
    assert json.loads(body) == {"detail": "there is no such page"}
    assert server.seen == []


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "{folder}/../secret",
        "{folder}/%2e%2e/../../etc/passwd",
        "http://127.0.0.1:1/x.png",
        "https://example.com/x.png",
        "file:///etc/passwd",
        "clip.mp4",
        "../clip.mp4",
        "\x00",
    ],
)
def test_other_files_are_not_served(server: Server, tmp_path: Path, name: str) -> None:
    path = "/gradio_api/file=" + name.format(folder=tmp_path)
    assert server.ask(path)[0] == 403
    assert server.seen == []


def test_an_upload_is_asked_about_before_it_is_read(server: Server) -> None:
    assert server.ask("/gradio_api/upload", b"ok")[0] == 200
    status, _, body = server.ask("/gradio_api/upload", b"too much")
    assert (status, json.loads(body)) == (429, {"detail": "1.2.3.4: 8"})
    assert len(server.seen) == 1


def test_an_upload_that_breaks_off_is_nothing_to_report(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any) -> None:
        raise ClientDisconnect

    monkeypatch.setattr(server.guard, "_app", broken)
    scope = {"type": "http", "method": "POST", "path": "/gradio_api/upload"}
    scope |= {"headers": [(b"content-length", b"2"), (b"host", b"localhost")]}
    asyncio.run(server.guard(scope, broken, broken))


def test_uploaded_files_are_served(server: Server, tmp_path: Path) -> None:
    assert server.ask(f"/gradio_api/file={tmp_path}/clip.mp4")[0] == 200


def named(path: object) -> bytes:
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    return json.dumps({"data": ["x", [{"video": file}]], "fn_index": 0}).encode()


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "http://127.0.0.1:1/x", "{folder}/../x", 7, ["/etc/passwd"], ""]
)
def test_a_request_that_names_another_file_is_refused(
    server: Server, tmp_path: Path, path: Any
) -> None:
    if isinstance(path, str):
        path = path.format(folder=tmp_path)
    for endpoint in ("queue/join", "call/add_media", "run/predict", "api/add_media", "cancel"):
        status, _, body = server.ask(f"/gradio_api/{endpoint}", named(path))
        assert (status, b"not uploaded" in body) == (403, True)
    assert server.seen == []


def test_a_request_arrives_whole(server: Server, tmp_path: Path) -> None:
    body = named(f"{tmp_path}/clip.mp4")
    assert server.ask("/gradio_api/queue/join", body[:10], body[10:])[0] == 200
    assert server.seen == [("/gradio_api/queue/join", body)]


@pytest.mark.parametrize("body", [b'{"data": ["/etc/passwd", {"path": null}]}', b"no json", b""])
def test_text_is_not_taken_for_a_file(server: Server, body: bytes) -> None:
    assert server.ask("/gradio_api/queue/join", body)[0] == 200


def test_a_deeply_nested_request_is_refused(server: Server) -> None:
    body = b"[" * 200_000 + b"]" * 200_000
    assert server.ask("/gradio_api/queue/join", body)[0] in (200, 403)
    inside = b'{"a":' * 900 + named("/etc/passwd") + b"}" * 900
    assert server.ask("/gradio_api/queue/join", inside)[0] == 403


def test_an_endless_request_is_refused(server: Server) -> None:
    half = b" " * (MAX_BODY_BYTES // 2)
    assert server.ask("/gradio_api/queue/join", half, half, b" ")[0] == 413
    assert server.ask("/gradio_api/upload", half, half, b" ")[0] == 200  # Gradio's to bound


def test_a_browser_is_told_to_stay_here(server: Server) -> None:
    for path in ("/", "/nowhere"):
        _, headers, _ = server.ask(path)
        policy = dict(
            rule.strip().split(" ", 1) for rule in headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == "'self'"
        for sources in policy.values():
            assert "http" not in sources
            assert "*" not in sources
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-dns-prefetch-control"] == "off"


def test_a_full_queue_is_said_in_plain_words(tmp_path: Path) -> None:
    status, headers, body = Server(tmp_path, status=503).ask("/gradio_api/queue/join", b"{}")
    assert status == 503
    assert json.loads(body)["detail"] == BUSY
    assert headers["content-length"] == str(len(body))


def test_a_heartbeat_tells_who_comes_and_goes(server: Server) -> None:
    server.ask("/gradio_api/heartbeat/abc")
    assert server.visits == ["+abc", "-abc"]


OWN = [
    "localhost",
    "localhost:7860",
    "LocalHost:80",
    "localhost.",
    "localhost:",
    "127.0.0.1",
    "127.0.0.1:7860",
    "127.1.2.3:1",
    "[::1]",
    "[::1]:7860",
    "[0:0:0:0:0:0:0:1]:7860",
    "chat.example.org",
    "Chat.Example.Org.:443",
]

FOREIGN = [
    "attacker.example",
    "attacker.example:7860",
    "127.0.0.1.attacker.example",
    "localhost.attacker.example",
    "attacker.example.",
    "attacker.localhost",
    "other.example.org",
    "example.org",
    "128.0.0.1",
    "192.168.1.5:7860",
    "0.0.0.0:7860",
    "[::2]:7860",
    "[fe80::1]",
    "::1",
    "[127.0.0.1]",
    "[::1",
    "localhost:7860:1",
    "localhost:x",
    "localhost@attacker.example",
    "attacker.example#localhost",
    "localhost, attacker.example",
    "127.0.0.1 .attacker.example",
    "2130706433",
    "0x7f.1",
    "",
    ".",
    ":7860",
    "caf\u00e9.example",
]


@pytest.mark.parametrize("host", OWN)
def test_the_page_is_opened_under_its_own_names(server: Server, host: str) -> None:
    assert server.ask("/", hosts=[host])[0] == 200
    assert server.ask("/gradio_api/queue/join", b"{}", origin=f"https://{host}")[0] == 200
    assert server.ask("/config", root="/behind/a/proxy", hosts=[host])[0] == 200


@pytest.mark.parametrize("host", FOREIGN)
def test_a_foreign_name_is_refused_everywhere(server: Server, host: str) -> None:
    for path in ("/", "/config", "/gradio_api/queue/data", "/gradio_api/heartbeat/abc", "/nowhere"):
        status, headers, body = server.ask(path, hosts=[host])
        assert status == 421
        assert headers["x-content-type-options"] == "nosniff"
        assert "--allow-host" in json.loads(body)["detail"]
        assert b"\n" not in body
    for path in ("/gradio_api/upload", "/gradio_api/queue/join", "/login"):
        assert server.ask(path, b"{}", hosts=[host])[0] == 421
        status, _, body = server.ask(path, b"{}", origin=f"http://{host}")
        assert (status, json.loads(body)["detail"].startswith("Origin: ")) == (403, True)
    assert server.seen == server.visits == []


@pytest.mark.parametrize(
    "hosts", [[], ["localhost", "attacker.example"], ["attacker.example", "localhost"]]
)
def test_exactly_one_host_is_expected(server: Server, hosts: list[str]) -> None:
    assert server.ask("/", hosts=hosts)[0] == 421


def test_a_page_without_an_origin_is_foreign(server: Server) -> None:
    for origin in ("null", "", "file://", "localhost:7860"):
        assert server.ask("/gradio_api/queue/join", b"{}", origin=origin)[0] == 403
    assert server.ask("/gradio_api/heartbeat/abc", origin="http://attacker.example")[0] == 403
    assert server.visits == []


@pytest.mark.parametrize(
    ("server_name", "inside", "outside"),
    [
        ("0.0.0.0", ["192.168.1.5:7860", "[fe80::1]:7860", "0.0.0.0", "localhost"], ["box.lan"]),
        ("::", ["192.168.1.5:7860", "[2001:db8::1]"], ["box.lan"]),
        ("192.168.1.5", ["192.168.1.5:7860", "localhost"], ["192.168.1.6", "0.0.0.0"]),
        ("[2001:db8::1]", ["[2001:DB8:0::1]:7860"], ["[2001:db8::2]"]),
        ("Box.lan", ["box.lan:7860", "BOX.LAN."], ["lan", "x.box.lan"]),
    ],
)
def test_the_address_of_the_server_is_its_name(
    server_name: str, inside: list[str], outside: list[str]
) -> None:
    hosts = AllowedHosts(server_name)
    assert [host for host in inside if host not in hosts] == []
    assert [host for host in outside if host in hosts] == []


def test_a_public_address_is_added_when_it_is_known() -> None:
    hosts = AllowedHosts("127.0.0.1")
    assert "0123abcd.gradio.live" not in hosts
    hosts.add("https://0123abcd.gradio.live")
    assert "0123abcd.gradio.live" in hosts
    assert "gradio.live" not in hosts


def test_a_websocket_is_closed_unopened(server: Server) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    for host in (b"localhost", b"attacker.example"):
        scope = {"type": "websocket", "path": "/queue/join", "headers": [(b"host", host)]}
        asyncio.run(server.guard(scope, receive, send))
    assert sent == ["websocket.close"] * 2
    assert server.seen == []
