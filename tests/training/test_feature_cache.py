"""Training with a cache of frozen features: the same losses, and nothing is encoded twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.training.training_data import (
    STAGE_1,
    STAGE_2,
    branch,
    config_path,
    log_lines,
    losses,
    run_folder,
    tiny_options,
    train,
    write_data,
)
from video_llama.config.build_run import build_runner
from video_llama.config.load import load_config
from video_llama.datasets.batches import ItemError
from video_llama.datasets.items import MediaLoader
from video_llama.models.video_llama import VideoLlama
from video_llama.runners.hooks import Hook
from video_llama.runners.runner import Runner
from video_llama.runners.state import RunState
from video_llama.types import ConfigError

VISION_1, VISION_2 = ("visionbranch", STAGE_1), ("visionbranch", STAGE_2)
AUDIO_1, AUDIO_2 = ("audiobranch", STAGE_1), ("audiobranch", STAGE_2)
Case = tuple[str, str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "set")


def options(case: Case, data: Path, output: Path, *more: str) -> list[str]:
    return [*tiny_options(*case, data, output), "run.iters_per_epoch=8", *more]


def runner(case: Case, data: Path, output: Path, *more: str) -> Runner:
    config = load_config(config_path(*case), options(case, data, output, *more))
    return build_runner(config, name="run")


def without_augmentation(case: Case) -> list[str]:
    clips = "webvid" if case[1] == STAGE_1 else "webvid_instruct"
    pictures = ["cc_sbu_align"] if case[1] == STAGE_1 else ["cc_sbu_align", "llava_instruct"]
    return [
        f"datasets.{clips}.vis_processor.train.name=alpro_video_eval",
        f"datasets.{clips}.vis_processor.train.sampling=uniform",
        *(f"datasets.{name}.vis_processor.train.name=blip2_image_eval" for name in pictures),
    ]


def forbidden(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("media were decoded, or a frozen encoder ran")


@pytest.mark.parametrize("case", [VISION_1, VISION_2, AUDIO_1, AUDIO_2])
def test_losses_are_the_same_with_and_without(
    case: Case, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = without_augmentation(case)
    exact = runner(case, data, tmp_path / "exact", *more, "run.iters_per_epoch=1")
    assert exact.train()
    cached = runner(case, data, tmp_path / "cached", *more, f"run.feature_cache={tmp_path}/cache")
    assert cached.train()
    # The first loss is off by one rounding. Training amplifies that from step to step, so the later
    # ones are compared with a run that rounds alike.
    assert losses(cached.state.folder)[:1] == pytest.approx(losses(exact.state.folder), rel=1e-5)
    encode = VideoLlama.frozen_features
    monkeypatch.setattr(
        VideoLlama, "frozen_features", lambda self, batch: encode(self, batch).half().float()
    )
    rounded = runner(case, data, tmp_path / "rounded", *more)
    assert rounded.train()
    assert len(losses(rounded.state.folder)) == 8
    assert losses(cached.state.folder) == pytest.approx(losses(rounded.state.folder), rel=1e-4)


@pytest.mark.parametrize("case", [VISION_2, AUDIO_1])
def test_with_a_full_cache_nothing_is_decoded_or_encoded(
    case: Case, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = (f"run.feature_cache={tmp_path}/cache", "run.num_views=2")
    first = runner(case, data, tmp_path / "1", *more)
    assert first.train()
    monkeypatch.setattr(MediaLoader, "_read", forbidden)
    monkeypatch.setattr(VideoLlama, "frozen_features", forbidden)
    second = runner(case, data, tmp_path / "2", *more)
    assert second.train()
    assert log_lines(second.state.folder) == log_lines(first.state.folder)
    assert branch(second.state.folder, 8) == branch(first.state.folder, 8)
    another = runner(case, data, tmp_path / "3", *more, "run.num_views=3")
    with pytest.raises(ItemError, match="media were decoded"):
        another.train()


class Crash(Hook):
    def after_update(self, run: RunState) -> None:
        if run.step >= 6:
            raise KeyboardInterrupt


@pytest.mark.parametrize("case", [VISION_1, AUDIO_2])
def test_a_resumed_run_has_the_same_bits_whatever_the_cache_holds(
    case: Case, data: Path, tmp_path: Path
) -> None:
    more = ("run.num_views=2", "run.save_every=3")
    one, other = (f"run.feature_cache={tmp_path}/{name}" for name in ("one", "other"))
    whole = runner(case, data, tmp_path / "whole", *more, one)
    assert whole.train()
    broken = runner(case, data, tmp_path / "broken", *more, other)
    broken.hooks = [Crash(), *broken.hooks]
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed = runner(case, data, tmp_path / "broken", *more, one, "run.resume_ckpt_path=latest")
    assert resumed.train()
    assert log_lines(resumed.state.folder) == log_lines(whole.state.folder)
    assert branch(resumed.state.folder, 8) == branch(whole.state.folder, 8)


def test_a_run_with_other_views_is_another_run(data: Path, tmp_path: Path) -> None:
    first = runner(VISION_1, data, tmp_path / "runs", f"run.feature_cache={tmp_path}/cache")
    first.train()
    resume = "run.resume_ckpt_path=latest"
    with pytest.raises(ConfigError, match=r"run\.feature_cache: 'some folder' in the checkpoint"):
        runner(VISION_1, data, tmp_path / "runs", resume)
    views = (f"run.feature_cache={tmp_path}/cache", "run.num_views=2", resume)
    with pytest.raises(ConfigError, match=r"run\.num_views: 1 in the checkpoint, 2 now"):
        runner(VISION_1, data, tmp_path / "runs", *views)


def test_two_processes_fill_and_share_a_cache(data: Path, tmp_path: Path) -> None:
    more = (f"run.feature_cache={tmp_path}/cache", "run.num_workers=1")
    for number in (1, 2):
        command = options(VISION_1, data, tmp_path / f"runs-{number}", *more)
        train(config_path(*VISION_1), command, processes=2)
        if number == 1:
            shards = sorted((tmp_path / "cache/frame_qformer").iterdir())
    assert sorted((tmp_path / "cache/frame_qformer").iterdir()) == shards
    one, two = (run_folder(tmp_path / f"runs-{number}") for number in (1, 2))
    assert log_lines(one) == log_lines(two)
    assert branch(one, 8) == branch(two, 8)


def test_stage_2_takes_what_stage_1_has_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = f"run.feature_cache={tmp_path}/cache"
    one = ("datasets.webvid=null", "datasets.cc_sbu_align.sample_ratio=null")
    runner(VISION_1, data, tmp_path / "1", *one, cache).train()
    monkeypatch.setattr(VideoLlama, "frozen_features", forbidden)
    more = ("datasets.webvid_instruct=null", "datasets.llava_instruct=null")
    two = (*more, "datasets.cc_sbu_align.sample_ratio=null", cache)
    assert runner(VISION_2, data, tmp_path / "2", *two).train()


def test_validation_reads_the_cache_too(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = (f"run.feature_cache={tmp_path}/cache", "run.valid_splits=[valid]")
    split = f"datasets.cc_sbu_align.build_info.valid.storage={data}/align"
    first = runner(VISION_1, data, tmp_path / "1", *more, split).evaluate("valid")
    monkeypatch.setattr(VideoLlama, "frozen_features", forbidden)
    assert runner(VISION_1, data, tmp_path / "2", *more, split).evaluate("valid") == first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("run.seed=7", "another weights"),  # of the parts that have random ones here
        ("model.freeze_qformer=false", "features of what trains cannot be kept"),
        ("model.freeze_vit=false", "features of what trains cannot be kept"),
    ],
)
def test_features_that_would_be_wrong_are_refused(
    change: str, message: str, data: Path, tmp_path: Path
) -> None:
    cache = f"run.feature_cache={tmp_path}/cache"
    runner(VISION_1, data, tmp_path / "1", cache)
    with pytest.raises(ConfigError, match=message):
        runner(VISION_1, data, tmp_path / "2", cache, change)


@pytest.mark.parametrize("damage", ["bits", "cut"])
def test_a_damaged_cache_gives_the_same_losses(
    data: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    more = (f"run.feature_cache={tmp_path}/cache", "run.num_views=2")
    first = runner(VISION_1, data, tmp_path / "1", *more)
    assert first.train()
    second = runner(VISION_1, data, tmp_path / "2", *more)  # has opened the shards
    for shard in (tmp_path / "cache").rglob("*.safetensors"):
        content = bytearray(shard.read_bytes())
        content[-1000] ^= 4
        shard.write_bytes(content if damage == "bits" else content[: len(content) // 2])
    assert second.train()
    assert "is damaged" in caplog.text
    assert log_lines(second.state.folder) == log_lines(first.state.folder)
    assert branch(second.state.folder, 8) == branch(first.state.folder, 8)
