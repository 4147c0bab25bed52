from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from video_llama.config.yaml_file import MAX_BYTES, read_yaml
from video_llama.types import ConfigError


def refusal(path: Path, content: str | bytes) -> str:
    """The message with which `content` is refused."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(str(path))
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.yaml"


def test_values_and_lines(path: Path) -> None:
    path.write_text(
        "# head\nmodel:\n  ckpt: a.pth\n  vit_config:\n    depth: 3\nrun:\n  seed: 1e-4\n"
    )
    file = read_yaml(path)
    assert file.values == {
        "model": {"ckpt": "a.pth", "vit_config": {"depth": 3}},
        "run": {"seed": 1e-4},
    }
    assert file.line("model.ckpt") == 3
    assert file.line("model.vit_config.depth") == 5
    assert file.line("model.llama_model") == 2, "a key that is missing: its section"
    assert file.line("datasets") is None


def test_an_empty_file_has_no_values(path: Path) -> None:
    path.write_text("# nothing\n")
    assert read_yaml(path).values == {}


def test_a_byte_order_mark_is_no_text(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbfmodel:\n  ckpt: \xc3\xa4.pth\n")
    assert read_yaml(path).values == {"model": {"ckpt": "ä.pth"}}


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nope\.yaml: no such file"):
        read_yaml(tmp_path / "nope.yaml")
    with pytest.raises(ConfigError, match="a folder given"):
        read_yaml(tmp_path)


@pytest.mark.parametrize("line", ['  ckpt: "a.pth" or "b.pth"', "  ckpt: 'a.pth' or b.pth  # c"])
def test_the_originals_choice_of_two_values_says_what_to_do(path: Path, line: str) -> None:
    message = refusal(path, f"model:\n{line}\n  arch: video_llama\n")
    assert "x.yaml:2: not YAML" in message
    assert "keep one of the two values" in message


@pytest.mark.parametrize("text", ["model:\n\tckpt: a\n", "model:\n  ckpt: a\n\tarch: b\n"])
def test_tabs_are_named(path: Path, text: str) -> None:
    message = refusal(path, text)
    assert "not with tabs" in message
    assert f"x.yaml:{text[: text.index(chr(9))].count(chr(10)) + 1}:" in message


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("model:\n  a: 1\n   b: 2\n", 3),
        ("model:\n  a: b: c\n", 2),
        ("{{{ %%", 1),
        ("a: 1\n---\nb: 2\n", 2),
        ("model: !!python/object/apply:os.getcwd []\n", 1),
    ],
)
def test_what_is_not_yaml_names_the_line(path: Path, text: str, line: int) -> None:
    assert f"x.yaml:{line}: not YAML" in refusal(path, text)


def test_a_key_given_twice_names_both_lines(path: Path) -> None:
    message = refusal(path, "model:\n  ckpt: a\n  arch: x\n  ckpt: b\n")
    assert "x.yaml:4: key 'ckpt' given twice" in message
    assert "line 2" in message


@pytest.mark.parametrize(("text", "kind"), [("- a\n", "sequence"), ("abc\n", "scalar")])
def test_the_top_level_is_a_mapping(path: Path, text: str, kind: str) -> None:
    assert f"the top level is a {kind}" in refusal(path, text)


def test_a_key_is_a_name(path: Path) -> None:
    assert "x.yaml:2: a key is a sequence" in refusal(path, "model:\n  [a]: 3\n")


@pytest.mark.parametrize("content", [b"model: \xff\xfe\n", "model:\n".encode("utf-16")])
def test_another_encoding_says_to_save_as_utf8(path: Path, content: bytes) -> None:
    assert "save the file as UTF-8" in refusal(path, content)


@pytest.mark.parametrize("content", [b"a: b\0c\n", bytes(range(1, 128))])
def test_control_characters_are_not_yaml(path: Path, content: bytes) -> None:
    assert "control characters" in refusal(path, content)


def test_interpolations_without_end_and_numbers_without_end(path: Path) -> None:
    refusal(path, "model:\n  ckpt: ${model\n")
    refusal(path, f"model:\n  max_txt_len: {'9' * 5000}\n")


@pytest.mark.parametrize(
    ("value", "fact"),
    [
        ('!!int ""', "bad value for !!int"),
        ('!!bool "x"', "bad value for !!bool"),
        ('!!timestamp "zz"', "the tag !!timestamp"),
        ("!!set {a}", "the tag !!set"),
        ("9" * 5000, "a number of 5000 digits"),
        (":".join(["59"] * 500), "digits"),
        ("!!float " + ":".join(["59"] * 500), "bad value for !!float"),
    ],
)
def test_a_value_that_does_not_fit_its_tag_names_the_line(
    path: Path, value: str, fact: str
) -> None:
    message = refusal(path, f"model:\n  max_txt_len: {value}\n")
    assert message.startswith(f"{path}:2: not YAML: ")
    assert fact in message
    assert len(message) < 500


def test_null_is_no_key(path: Path) -> None:
    assert "x.yaml:2: the key '~' is no name" in refusal(path, "model:\n  ~: 1\n")


def test_devices_and_pipes_are_not_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for name in (Path("/dev/zero"), pipe):
        with pytest.raises(ConfigError, match="a device or pipe given"):
            read_yaml(name)


def alias_bomb() -> str:
    lines = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    for name, previous in zip("bcdefghij", "abcdefghi", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{previous}'] * 10)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        (alias_bomb(), "aliases"),
        ("model: &a\n  x: *a\n", "aliases"),
        ("".join(f"a{i}: &a{i} [{f'*a{i - 1}' if i else 1}]\n" for i in range(99)), "aliases"),
        ("model: " + "[" * 100_000, "nested deeper"),
        ("model: " + "{a: " * 3000 + "}" * 3000, "nested deeper"),
        (f"model: {'${' * 300}{'}' * 300}", "brackets"),
        ("#" * (MAX_BYTES + 1), "is this a configuration?"),
    ],
    ids=["bomb", "loop", "ladder", "lists", "mappings", "dollars", "size"],
)
def test_files_that_would_take_all_memory_are_refused_at_once(
    path: Path, text: str, fact: str
) -> None:
    start = time.perf_counter()
    assert fact in refusal(path, text)
    assert time.perf_counter() - start < 2
