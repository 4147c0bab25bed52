"""The examples of docs/data.md are read as the page says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.media import write_video
from tests.reference import ROOT
from video_llama.datasets.base import DATASETS, BuildInfo

FILES = {
    "webvid": "a.csv",
    "cc_sbu_align": "filter_cap.json",
    "llava_instruct": "a.json",
    "webvid_instruct": "a.json",
    "webvid_instruct_zh": "a.json",
    "audio_caption": "a.csv",
}


def example(name: str) -> str:
    """The first block under the headline that names a data set."""
    page = (ROOT / "docs/data.md").read_text("utf-8")
    section = re.split(rf"\n### [^\n]*`{name}`[^\n]*\n", page)[1]
    return re.split(r"```\w*\n", section)[1]


@pytest.mark.parametrize("name", FILES)
def test_the_example_of_a_format_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / FILES[name]
    path.write_text(example(name), "utf-8")
    info = BuildInfo(anno_dir=str(path), videos_dir=str(tmp_path), storage=str(tmp_path))
    records = DATASETS.get(name)(build_info=info).read(info)
    assert len(records) >= 1
    assert records[0].caption or records[0].turns


def test_every_data_set_is_described() -> None:
    page = (ROOT / "docs/data.md").read_text("utf-8")
    assert [name for name in DATASETS if not re.search(rf"\n### [^\n]*`{name}`", page)] == []


FOLLOW = """
import sys
from video_llama.apps.cli.main import main
checked = main(["data", "check", "my_clips", "--anno-dir", "a.csv", "--videos-dir", "clips"])
import train
sys.exit(checked or train.main(["--cfg-path", "my.yaml"]))
"""
YAML = """
model:
  llama_model: ${package:presets/tiny/llama}
  random_init: true
  image_size: 28
  vit_config: {patch_size: 14, embed_dim: 32, depth: 1, num_heads: 2}
  qformer_config: {hidden_size: 48, num_hidden_layers: 2, num_attention_heads: 4,
                   intermediate_size: 96}
  num_query_token: 4
  num_video_query_token: 4
  max_frame_pos: 8
  precision: fp32
  vit_precision: fp32
  frozen_video_Qformer: false
  frozen_llama_proj: false
datasets:
  my_clips:
    build_info: {anno_dir: a.csv, videos_dir: clips}
    vis_processor: {train: {name: alpro_video_train, n_frms: 4, image_size: 28}}
run:
  {device: cpu, max_epoch: 1, iters_per_epoch: 2, batch_size_train: 2, num_workers: 0, log_every: 1}
"""


def test_a_data_set_is_added_in_two_edits(tmp_path: Path) -> None:
    """In a copy of the package, to the letter."""
    for name in ("video_llama", "prompts", "train_configs", "eval_configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", tmp_path)
    page = (ROOT / "docs/data.md").read_text("utf-8").partition("## Adding a data set")[2]
    module, line = map(textwrap.dedent, re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    (tmp_path / "video_llama/datasets/my_clips.py").write_text(module, "utf-8")
    with (tmp_path / "video_llama/datasets/__init__.py").open("a", encoding="utf-8") as file:
        file.write(line)

    (tmp_path / "clips").mkdir()
    for number in range(4):
        write_video(tmp_path / f"clips/{number}.mp4", num_frames=6 + number)
    rows = "".join(f"{number}.mp4,clip {number}\n" for number in range(4))
    (tmp_path / "a.csv").write_text(f"file,text\n{rows}")
    (tmp_path / "my.yaml").write_text(YAML)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", FOLLOW],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"my_clips.*4", done.stdout), "the check reads the four clips"
    (log,) = tmp_path.glob("output/my-*/log.jsonl")
    assert len(log.read_text().splitlines()) == 2
