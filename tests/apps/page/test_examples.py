"""The examples of the page are files of their kinds, and the same ones each time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.reference import ROOT
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


def test_the_folder_of_examples_holds_the_same_files(tmp_path: Path) -> None:
    # Another build of the encoders writes other bytes, but files of the same kind and length.
    files = write_examples(tmp_path)
    committed = {path.name: path for path in (ROOT / "examples").iterdir()}
    assert committed.keys() == files.keys()
    for name, path in files.items():
        assert probe(committed[name]) == replace(probe(path), path=committed[name])
