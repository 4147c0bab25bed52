"""Texts and files that try to break what reads them, made from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

FRAGMENTS = [
    *("<ImageHere>", "<Image>", "</Image>", "<Video>", "</Video>", "<image>", "<unk>", "<pad>"),
    *("###", "##", "#", "### Human:", "\n###Assistant:", "###Human: ", "Assistant:", "ASSISTANT:"),
    *("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "[INST", "INST]", "<<SYS", "<s>", "</s>", "</"),
    *("{system}", "{}", "%s", "%n", "{0.__class__}", "\\", "\\n", "\\x00", "'; --", "$(reboot)"),
    *("\x00", "\x07", "\x1b[2J", "\x7f", "\r\n", "\t", "\x0b", "\x85", "\u2028", "\ufeff", "\x08"),
    *("\ud83d", "\udc00", "\udfff\ud800", "\U0001f600", "\U0001f468\u200d\U0001f469", "\ufffd"),
    *("\u202e", "\u202d", "\u2066", "\u05e9\u05dc\u05d5\u05dd", "\u0645\u0631\u062d\u0628\u0627"),
    *(
        "a\u0301" * 8,
        "\u200b",
        "\u2581",
        "<0x0A>",
        "<0xE2>",
        "\u4e2d\u6587",
        "e",
        " ",
        "What is it?",
    ),
    *("NaN", "null", "-1", "9" * 40, "../../etc/passwd", "file:///etc/passwd", "<script>", "&amp;"),
]
LONG = 100_000
"""Characters of the longest texts."""


def hostile_text(seed: int) -> str:
    """A text of one to forty fragments; one in a hundred is 100 kB long."""
    source = random.Random(seed)
    fragments = source.choices(FRAGMENTS, k=source.randint(1, 40))
    if source.random() < 0.2:
        fragments.append("".join(chr(source.randrange(0x110000)) for _ in range(20)))
    text = "".join(fragments)
    return (text * (LONG // len(text) + 1))[:LONG] if seed % 100 == 99 else text


def _cut(data: bytearray, source: random.Random) -> bytearray:
    return data[: source.randrange(len(data))]


def _flip(data: bytearray, source: random.Random) -> bytearray:
    for _ in range(source.choice((1, 4, 32, 256))):
        data[source.randrange(len(data))] ^= 1 << source.randrange(8)
    return data


def _blank(data: bytearray, source: random.Random) -> bytearray:
    start = source.randrange(len(data))
    size = min(source.choice((4, 64, 1024)), len(data) - start)
    data[start : start + size] = bytes(size)
    return data


def _noise(data: bytearray, source: random.Random) -> bytearray:
    start = source.randrange(len(data))
    data[start : start + 200] = source.randbytes(min(200, len(data) - start))
    return data


def _insert(data: bytearray, source: random.Random) -> bytearray:
    start = source.randrange(len(data))
    return data[:start] + source.randbytes(source.randrange(1, 64)) + data[start:]


def _header(data: bytearray, source: random.Random) -> bytearray:
    for _ in range(4):
        data[source.randrange(min(64, len(data)))] = source.choice((0, 1, 0x7F, 0x80, 0xFF))
    return data


def _double(data: bytearray, source: random.Random) -> bytearray:
    start = source.randrange(len(data))
    return data[:start] + data


MUTATIONS: list[Callable[[bytearray, random.Random], bytearray]] = [
    *(_cut, _flip, _blank, _noise, _insert, _header, _double)
]


def malformed_file(seed: int, originals: list[Path], folder: Path) -> Path:
    """A damaged copy of one of some files, at times with the name of another kind."""
    source = random.Random(seed)
    original = originals[seed % len(originals)]
    data = bytearray(original.read_bytes())
    for mutate in source.sample(MUTATIONS, k=source.randint(1, 2)):
        if data:
            data = mutate(data, source)
    suffix = source.choice((original.suffix, original.suffix, ".mp4", ".jpg", ".wav", ""))
    path = folder / f"{seed}{suffix}"
    path.write_bytes(data)
    return path
