"""Tokenizers and texts for the tests of this folder."""

from __future__ import annotations

import random

from tests.reference import GOLDEN, SHARED
from video_llama.common.io import package_file

SHIPPED = package_file("presets/tiny/llama")
FOLDERS = {
    "shipped": SHIPPED,
    "tiny": GOLDEN / "tiny_tokenizer",
    "llama": SHARED / "tokenizers" / "llama",
}
ALPHABETS = [
    " ",
    " a",
    "ab ",
    " #",
    "0 1.",
    "aeiou ",
    "\n\t ",
    "红色铃鼓 的",
    "é\u3000\xa0 中",
    "<>/s0xA",
]


def random_texts(count: int) -> list[str]:
    rng = random.Random(0)
    words = [
        "A red",
        " bell",
        "\n",
        "###",
        "</s>",
        "<s>",
        "😀",
        "👩‍👧",
        "中文",
        "<0x0A>",
        " ",
        "  ",
        "12.5",
    ]
    plain = ["".join(rng.choices(a, k=rng.randint(0, 60))) for a in ALPHABETS for _ in range(count)]
    return plain + ["".join(rng.choices(words, k=rng.randint(0, 12))) for _ in range(4 * count)]
