"""The examples of the page are files of their kinds, and the same ones each time."""

from __future__ import annotations

from pathlib import Path

from video_llama.apps.page.examples import EXAMPLES, write_examples
from video_llama.processors.media import probe


def test_the_examples_are_real_files(tmp_path: Path) -> None:
    files = write_examples(tmp_path)
    kinds = {"video": "video", "picture": "image", "sound": "audio"}
    for example in EXAMPLES:
        info = probe(files[example.file])
        assert info.kind == kinds[example.slot]
        assert info.has_audio is bool(example.scene.sounds)


def test_the_examples_are_the_same_each_time(tmp_path: Path) -> None:
    both = []
    for name in "ab":
        (tmp_path / name).mkdir()
        files = write_examples(tmp_path / name)
        both.append([files[example.file].read_bytes() for example in EXAMPLES])
    assert both[0] == both[1]
