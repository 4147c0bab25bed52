"""`video-llama data check` and `data pack`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data_sets import write_all
from tests.reference import ROOT
from video_llama.apps.cli import data as cli_data
from video_llama.apps.cli.main import main

YAML = """
model:
  llama_model: ${{package:presets/tiny/llama}}
  equip_audio_branch: false
datasets:
  webvid:
    build_info: {{anno_dir: {0}/webvid, videos_dir: {0}/clips}}
  cc_sbu_align:
    build_info: {{storage: {0}/align}}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("data") / "all")


def run(*words: object) -> int:
    return main(["data", *map(str, words)])


def config(data: Path, tmp_path: Path) -> Path:
    path = tmp_path / "x.yaml"
    path.write_text(YAML.format(data))
    return path


def test_the_data_sets_of_a_configuration_are_checked(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    path = config(data, tmp_path)
    assert run("check", path, "--sample", 3, "--workers", 0, "--json", report) == 0
    out = capsys.readouterr().out
    assert "webvid" in out
    assert "cc_sbu_align" in out
    found = json.loads(report.read_text())
    assert [(s["name"], s["num_items"], s["num_checked"]) for s in found["data_sets"]] == [
        ("webvid", 12, 3),
        ("cc_sbu_align", 6, 3),
    ]
    assert found["errors"] == []


def test_bad_media_and_bad_annotations_are_a_failure(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text("videoid,page_dir,name\n0,p,a\nnone,p,b\n")
    keys = ["--videos-dir", data / "clips", "--workers", 0]
    assert run("check", "webvid", "--anno-dir", tmp_path / "a.csv", *keys) == 1
    assert "webvid: missing: " in capsys.readouterr().out
    assert run("check", "webvid", "--anno-dir", tmp_path / "b.csv", *keys) == 1
    assert "video-llama: error: webvid: " in capsys.readouterr().err
    assert run("check", tmp_path / "none.yaml") == 1
    assert "no such file" in capsys.readouterr().err


def test_one_data_set_with_options_is_packed_and_checked_again(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = config(data, tmp_path), tmp_path / "out"
    options = [f"--options=datasets.webvid.build_info.anno_dir={data}/webvid/1.csv"]
    choice = ["--data-set", "webvid", "--workers", 0, "--samples-per-shard", 2, *options]
    assert run("pack", path, out, *choice) == 0
    shown = capsys.readouterr().out
    storage = f"{out}/webvid/webvid-{{000000..000002}}.tar"
    assert f"build_info.storage: {storage}" in shown
    assert run("check", "webvid", "--storage", storage, "--workers", 0) == 0
    assert run("pack", path, out, *choice) == 0
    assert "0 of them" in capsys.readouterr().out.replace("\n", " ")


def test_names_with_control_characters_are_shown_escaped(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text("videoid,page_dir,name\n\x1b[31m,p,a\n")
    keys = ["--anno-dir", tmp_path / "a.csv", "--videos-dir", data / "clips", "--workers", 0]
    assert run("check", "webvid", *keys) == 1
    assert run("pack", "webvid", tmp_path / "out", *keys) == 1
    assert run("check", tmp_path / "\x1b[31m.yaml") == 1
    shown = capsys.readouterr()
    assert shown.out.count("\\x1b[31m") == 2
    assert "\\x1b[31m.yaml" in shown.err
    assert "\x1b[31m" not in shown.out + shown.err


def test_an_unknown_data_set_or_split_is_an_error(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(data, tmp_path)
    assert run("check", path, "--data-set", "laion") == 1
    assert "no data set 'laion'" in capsys.readouterr().err
    assert run("check", path, "--split", "valid") == 1
    assert "no data set has a valid split" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("webvid",), "webvid: give --anno-dir or --storage"),
        (
            ("webvid", "--anno-dir", "a.csv", "--split", "valid"),
            "--split, --options and --data-set",
        ),
        (("webvid", "--anno-dir", "a.csv", "--options", "run.seed=1"), "are for a YAML"),
        (("x.yaml", "--storage", "a"), "use --options datasets.NAME.build_info.storage=a"),
    ],
)
@pytest.mark.parametrize("command", ["check", "pack"])
def test_words_that_say_too_little_or_would_be_ignored_are_an_error(
    command: str, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command, *words, *(["packed"] if command == "pack" else [])) == 1
    assert message in capsys.readouterr().err


def test_the_parser_imports_nothing_heavy() -> None:
    code = (
        "import sys; from video_llama.apps.cli.main import build_parser; build_parser(); "
        "print(*{'torch', 'pyarrow', 'webdataset', 'omegaconf', 'rich', 'av'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.split() == [], result.stderr


def test_the_report_has_a_place_before_the_work_begins(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cli_data, "_for_each", lambda *_: pytest.fail("checked in vain"))
    assert run("check", config(data, tmp_path), "--json", tmp_path / "none" / "report.json") == 1
    assert "report.json: there is no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "audio,caption\na.wav,狗\n".encode("gbk"), r"a.csv:2: not a csv table in UTF-8"),
        ("a.tsv", b"audio\tcaption\n\tx\n", "row 1 below the header has audio ''"),
        ("a.csv", b"audio,caption\na,None\nb,x\nc,N/A\n", "(2 such rows: 1, 3; 'None' 1 x, 'N/A'"),
        ("a.json", b'[{"audio": "a", "caption": true}]', "entry 0: caption is true, text expected"),
        ("a.json", b'[{"audio": null, "caption": "x"}]', "entry 0: audio is null, text expected"),
        ("a.json", b'[{"audio": "a", "caption": null}]', "(1 such entries: 0; null 1 x"),
        ("a.csv", b'audio,caption\na," x\nb,y\nc," z\n', "a.csv:2: not a csv table: the quote"),
    ],
)
def test_an_annotation_of_others_is_refused_with_its_place(
    tmp_path: Path,
    name: str,
    content: bytes,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / name).write_bytes(content)
    report = tmp_path / "report.json"
    keys = ["--anno-dir", tmp_path / name, "--videos-dir", tmp_path, "--json", report]
    assert run("check", "audio_caption", *keys, "--workers", 0) == 1
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert message in json.loads(report.read_text("utf-8"))["errors"][0]


def test_a_folder_whose_name_is_not_utf_8_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("audio,caption\nnone.wav,x\n")
    media, report = tmp_path / "caf\udce9", tmp_path / "report.json"
    keys = ["--anno-dir", tmp_path / "a.csv", "--videos-dir", media, "--json", report]
    assert run("check", "audio_caption", *keys, "--workers", 0) == 1
    (finding,) = json.loads(report.read_text("utf-8"))["data_sets"][0]["findings"]
    assert finding["reason"] == "there is no such file"
    assert finding["path"] == f"{media}/none.wav"
