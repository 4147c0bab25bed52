"""An adapter trains with its branch, is kept beside it and resumes to the bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.training.test_kill import kill_at_random_steps
from tests.training.training_data import (
    STAGE_2,
    branch,
    config_path,
    log_lines,
    run_folder,
    tiny_options,
    write_data,
)
from video_llama.apps.doctor import path_problems
from video_llama.apps.doctor_shapes import examine
from video_llama.apps.estimate.measure import meta_model
from video_llama.apps.estimate.memory import part_weights
from video_llama.common.io import package_file
from video_llama.config.build import build_model
from video_llama.config.build_run import build_runner, identity
from video_llama.config.load import load_config
from video_llama.models.lora import adapter_hash, lora_parameters, merge_adapter, read_adapter
from video_llama.models.weights.files import open_weights
from video_llama.models.weights.save import Manifest
from video_llama.types import ConfigError, WeightsError

CASE = ("visionbranch", STAGE_2)
STEPS = 16


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "set", num_items=4)


def options(data: Path, output: Path, *more: str) -> list[str]:
    length = (f"run.iters_per_epoch={STEPS}", "run.save_every=4", "model.lora_r=2")
    return [*tiny_options(*CASE, data, output), *length, *more]


def checkpoint(run: Path, step: int = STEPS) -> Path:
    return run / f"checkpoints/step-{step:06d}"


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole")
    assert build_runner(load_config(config_path(*CASE), options(data, output)), name="a").train()
    return run_folder(output)


def test_branch_and_adapter_lie_side_by_side(whole: Path) -> None:
    folder = checkpoint(whole)
    names = open_weights(folder / "branch.safetensors").shapes
    assert not any("lora" in name or name.startswith("llama_model.") for name in names)
    adapter = read_adapter(folder / "adapter")
    # B starts at zero: it has been trained.
    assert all(float(t.abs().max()) > 0 for n, t in adapter.items() if ".lora_B." in n)
    seal = json.loads((folder / "complete.json").read_text("utf-8"))
    assert seal["sha256"]["adapter/adapter_model.safetensors"] == adapter_hash(folder / "adapter")
    manifest = Manifest.of_file(open_weights(folder / "branch.safetensors"))
    assert manifest is not None
    assert manifest.adapter == adapter_hash(folder / "adapter")


def test_a_killed_run_ends_with_the_same_bits(data: Path, whole: Path, tmp_path: Path) -> None:
    config = config_path(*CASE)
    resume = options(data, tmp_path, "run.resume_ckpt_path=latest")
    kill_at_random_steps(config, resume, tmp_path, [7], processes=0)
    runner = build_runner(load_config(config, resume), name="b")
    assert 4 <= runner.state.step < STEPS
    assert runner.train()
    mended = run_folder(tmp_path)
    assert log_lines(mended) == log_lines(whole)
    assert branch(mended, STEPS) == branch(whole, STEPS)
    ours, theirs = (read_adapter(checkpoint(run) / "adapter") for run in (mended, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_damaged_adapter_is_not_resumed_from(data: Path, whole: Path, tmp_path: Path) -> None:
    path = checkpoint(whole) / "adapter/adapter_model.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    try:
        more = (f"run.resume_ckpt_path={checkpoint(whole)}", "run.max_epoch=2")
        with pytest.raises(WeightsError, match="damaged"):
            build_runner(load_config(config_path(*CASE), options(data, tmp_path, *more)), name="c")
    finally:
        path.write_bytes(good)


def answering(data: Path, *more: str) -> list[str]:
    frozen = ("model.frozen_video_Qformer=true", "model.frozen_llama_proj=true")
    return [*tiny_options(*CASE, data, Path("unused")), *frozen, *more]


def test_a_branch_takes_its_own_adapter_only(data: Path, whole: Path) -> None:
    config = config_path(*CASE)
    file = f"model.ckpt={checkpoint(whole)}/branch.safetensors"
    own, other = (f"model.lora_ckpt={checkpoint(whole, s)}/adapter" for s in (STEPS, 8))
    assert build_model(load_config(config, answering(data, file, own)))
    with pytest.raises(WeightsError, match=r"set model.lora_ckpt to the folder `adapter` beside"):
        build_model(load_config(config, answering(data, file)))
    with pytest.raises(WeightsError, match=r"and that in .*step-000008/adapter is another one"):
        build_model(load_config(config, answering(data, file, other)))


def test_a_branch_takes_a_llama_into_which_its_adapter_was_merged(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    config = config_path(*CASE)
    folder = checkpoint(whole)
    llama = package_file("presets/tiny/llama")
    merge_adapter(llama, folder / "adapter", tmp_path / "merged")
    merge_adapter(llama, checkpoint(whole, 8) / "adapter", tmp_path / "other")
    file = f"model.ckpt={folder}/branch.safetensors"
    merged, other = (f"model.llama_model={tmp_path / name}" for name in ("merged", "other"))
    assert build_model(load_config(config, answering(data, file, merged)))
    with pytest.raises(WeightsError, match="trained with a LoRA adapter"):
        build_model(load_config(config, answering(data, file, other)))


def test_a_branch_without_adapter_takes_none(data: Path, whole: Path, tmp_path: Path) -> None:
    config = config_path(*CASE)
    plain = [*options(data, tmp_path), "model.lora_r=0", "run.iters_per_epoch=4"]
    assert build_runner(load_config(config, plain), name="plain").train()
    folder = checkpoint(run_folder(tmp_path), 4)
    assert not (folder / "adapter").exists()
    file = f"model.ckpt={folder}/branch.safetensors"
    other = f"model.lora_ckpt={checkpoint(whole)}/adapter"
    with pytest.raises(WeightsError, match="it was trained without a LoRA adapter"):
        build_model(load_config(config, answering(data, file, other)))


def test_the_adapter_has_its_own_learning_rate(data: Path, tmp_path: Path) -> None:
    more = ("run.lora_lr=1e-4", "run.iters_per_epoch=1")
    runner = build_runner(load_config(config_path(*CASE), options(data, tmp_path, *more)), name="d")
    assert runner.train()
    rates = [group["lr"] for group in runner.state.optimizer.param_groups]
    assert rates[-1] == pytest.approx(rates[0] * 1e-4 / 2e-3)


def test_sharding_is_refused(data: Path, tmp_path: Path) -> None:
    cfg = load_config(config_path(*CASE), options(data, tmp_path, "run.fsdp=true"))
    with pytest.raises(ConfigError, match=r"run.fsdp: true given together with LoRA"):
        build_runner(cfg, name="e")


def test_estimate_and_doctor_know_it(data: Path, tmp_path: Path) -> None:
    config = config_path(*CASE)
    plain, lora = (
        load_config(config, [*options(data, tmp_path), f"model.lora_r={rank}"]) for rank in (0, 2)
    )
    trained = [
        sum(p.numel() for p in meta_model(cfg).parameters() if p.requires_grad)
        for cfg in (plain, lora)
    ]
    llm = meta_model(plain).language_model.config
    # A and B of q_proj and v_proj: a row and a column each for every rank.
    width, values = llm.hidden_size, llm.num_key_value_heads * llm.head_dim
    assert trained[1] - trained[0] == llm.num_hidden_layers * 2 * (3 * width + values)
    problems, model = examine(lora)
    assert problems == []
    assert model is not None
    assert list(lora_parameters(model.language_model))
    missing = load_config(config, [*options(data, tmp_path), f"model.lora_ckpt={tmp_path}"])
    assert any("model.lora_ckpt: no adapter_config.json" in p for p in path_problems(missing))


def test_an_adapter_without_rank_stays_as_it_is(data: Path, whole: Path, tmp_path: Path) -> None:
    folder = checkpoint(whole)
    given = (f"model.ckpt={folder}/branch.safetensors", f"model.lora_ckpt={folder}/adapter")
    more = (*given, "model.lora_r=0", "run.iters_per_epoch=4")
    runner = build_runner(load_config(config_path(*CASE), options(data, tmp_path, *more)), name="f")
    assert not [name for name, _ in runner.components.trainable if ".lora_" in name]
    assert runner.train()
    kept = dict(lora_parameters(runner.components.task.model.language_model))
    before = read_adapter(folder / "adapter")
    assert all(torch.equal(kept[name], before[name]) for name in before)
    saved = checkpoint(run_folder(tmp_path), 4)
    assert not (saved / "adapter").exists()
    manifest = Manifest.of_file(open_weights(saved / "branch.safetensors"))
    assert manifest is not None
    assert manifest.adapter == adapter_hash(folder / "adapter")
    # Its checkpoint goes on, too.
    resume = options(data, tmp_path, *more, f"run.resume_ckpt_path={saved}", "run.max_epoch=2")
    assert build_runner(load_config(config_path(*CASE), resume), name="g").train()


def test_runs_of_before_there_were_adapters_go_on(data: Path, tmp_path: Path) -> None:
    cfg = load_config(config_path(*CASE), [*options(data, tmp_path), "model.lora_r=0"])
    assert [key for key in identity(cfg, 1)["fixed"] if "lora" in key] == []
    with_rank = load_config(config_path(*CASE), options(data, tmp_path))
    assert identity(with_rank, 1)["fixed"]["model.lora_r"] == 2


def test_a_run_goes_on_with_the_decay_and_rates_of_now(data: Path, tmp_path: Path) -> None:
    config, more = config_path(*CASE), ("run.iters_per_epoch=2", "run.save_every=0")
    first = build_runner(
        load_config(config, options(data, tmp_path, *more, "run.lora_lr=1e-4")), name="h"
    )
    assert first.train()
    other = ("run.lora_lr=1e-2", "run.weight_decay=0.5", "run.beta2=0.9", "run.max_epoch=2")
    resume = f"run.resume_ckpt_path={first.state.checkpoint}"
    second = build_runner(
        load_config(config, options(data, tmp_path, *more, *other, resume)), name="i"
    )
    groups = second.state.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0, 0.5]
    assert {group["betas"] for group in groups} == {(0.9, 0.9)}
    assert groups[-1]["lr_scale"] == pytest.approx(1e-2 / 2e-3)
    assert second.state.optimizer.state_dict()["state"], "the moments go on"


def test_estimate_counts_an_adapter_in_fp32_beside_a_quantised_model(
    data: Path, tmp_path: Path
) -> None:
    config = config_path(*CASE)
    plain, lora = (
        part_weights(
            meta_model(load_config(config, [*options(data, tmp_path), f"model.lora_r={rank}"])),
            quantization="nf4",
        )
        for rank in (0, 2)
    )
    assert lora["language_model"] == plain["language_model"]
    assert "adapter" not in plain
    assert lora["adapter"].bytes == 4 * lora["adapter"].parameters > 0


def test_doctor_compares_the_tensors_of_an_adapter(data: Path, whole: Path, tmp_path: Path) -> None:
    copy = tmp_path / "adapter"
    shutil.copytree(checkpoint(whole) / "adapter", copy)
    path = copy / "adapter_model.safetensors"
    save_file(dict(list(load_file(path).items())[1:]), path, {"format": "pt"})
    cfg = load_config(config_path(*CASE), answering(data, f"model.lora_ckpt={copy}"))
    problems, _ = examine(cfg)
    assert any("does not fit the language model: 1 tensors" in problem for problem in problems)
