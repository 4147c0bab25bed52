"""Weights between .pth and .safetensors: what is kept, what is left out, and that it still fits."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.full_model import (
    UNUSED_TOWER,
    eva_vit_g,
    full_model,
    imagebind_huge,
    training_checkpoint,
)
from tests.golden_model import build_golden, golden, golden_files, golden_model, weight
from tests.tiny_chat import Run
from video_llama.apps.convert import convert, prefix_of
from video_llama.common.io import DiskFullError
from video_llama.models.settings import Branch
from video_llama.models.video_llama import VideoLlama
from video_llama.models.weights.files import WeightFile, open_weights
from video_llama.models.weights.names import LOGIT_SCALE
from video_llama.models.weights.save import Manifest, describe_branch, save_branch
from video_llama.types import RequestError, WeightsError


def released(path: Path, prefix: str = "", *, wrapped: bool = True) -> Path:
    """A part of the golden model as the original releases it: buffers and unused parts too."""
    state = {
        name.removeprefix(prefix): weight(name, shape)
        for name, shape in golden().parameters.items()
        if name.startswith(prefix)
    }
    torch.save(training_checkpoint(state) if wrapped else state, path)
    return path


def same(left: VideoLlama, right: VideoLlama) -> bool:
    ours, theirs = dict(left.named_parameters()), dict(right.named_parameters())
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def saved_branch(path: Path, branch: Branch) -> Manifest:
    model = golden_model(branch)
    llm = model.language_model.config
    manifest = describe_branch(model.settings, llm, stage=2, frames=8, clips=4, step=7)
    save_branch(model.trainable_parameters(), path, manifest)
    return manifest


def tensors(file: WeightFile) -> dict[str, torch.Tensor]:
    return {name: file.tensor(name) for name in file.shapes}


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


@pytest.mark.parametrize("branch", ["video", "audio"])
def test_a_branch_survives_the_way_there_and_back(tmp_path: Path, branch: Branch) -> None:
    first, pth, last = (tmp_path / name for name in ("a.safetensors", "a.pth", "b.safetensors"))
    manifest = saved_branch(first, branch)
    assert convert(first, pth)[1] == {}
    assert convert(pth, last)[1] == {}
    for path in (first, pth, last):
        file = open_weights(path)
        assert equal(tensors(file), tensors(open_weights(first)))
        assert Manifest.of_file(file) == manifest


@pytest.mark.parametrize("branch", ["video", "audio"])
def test_a_pth_is_what_the_original_loads(tmp_path: Path, branch: Branch) -> None:
    saved_branch(tmp_path / "a.safetensors", branch)
    convert(tmp_path / "a.safetensors", tmp_path / "a.pth")
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    names = content["model"].keys()
    trained = full_model().branches[branch]["trainable_keys"]
    # The golden model has the Q-Formers' names of the full size, all 58 of them.
    assert sorted(names) == sorted(trained)
    assert len(names) == 58


def test_released_branches_lose_their_buffers_alone(tmp_path: Path) -> None:
    saved = full_model().saved("video")
    state = {name: torch.zeros(2) for name in saved}
    torch.save(training_checkpoint(state), tmp_path / "VL.pth")
    kept, dropped = convert(tmp_path / "VL.pth", tmp_path / "VL.safetensors")
    assert (kept, dropped) == (58, {"constant buffers": 34})
    names = open_weights(tmp_path / "VL.safetensors").shapes.keys()
    assert sorted(names) == sorted(full_model().branches["video"]["trainable_keys"])


def test_imagebind_loses_its_unused_towers_and_keeps_its_scale(tmp_path: Path) -> None:
    state = {name: torch.full((2,), 3.0) for name in imagebind_huge()}
    torch.save(state, tmp_path / "imagebind_huge.pth")
    kept, dropped = convert(tmp_path / "imagebind_huge.pth", tmp_path / "ib.safetensors")
    file = open_weights(tmp_path / "ib.safetensors")
    assert set(dropped) == {"ImageBind's unused towers"}
    assert kept + dropped.total() == len(state)
    assert not [name for name in file.shapes if UNUSED_TOWER.match(f"audio_encoder.{name}")]
    scale = LOGIT_SCALE.removeprefix("audio_encoder.")
    assert torch.equal(file.tensor(scale), torch.full((2,), 3.0))


def test_a_pth_of_imagebind_is_bare_as_the_original_reads_it(tmp_path: Path) -> None:
    save_file({name: torch.zeros(2) for name in imagebind_huge()}, tmp_path / "ib.safetensors")
    convert(tmp_path / "ib.safetensors", tmp_path / "ib.pth")
    state = torch.load(tmp_path / "ib.pth", weights_only=True)
    assert all(name.startswith("modality_") for name in state)


@pytest.mark.parametrize("prefix", ["", "visual_encoder.", "audio_encoder."])
def test_the_part_of_a_file_is_recognised(tmp_path: Path, prefix: str) -> None:
    path = released(tmp_path / "a.pth", prefix, wrapped=not prefix)
    assert prefix_of(open_weights(path)) == prefix


@pytest.mark.parametrize("name", ["llama_proj.weight", "video_query_tokens", "model.norm.weight"])
def test_a_small_file_has_whole_names(tmp_path: Path, name: str) -> None:
    save_file({name: torch.zeros(2)}, tmp_path / "a.safetensors")
    assert prefix_of(open_weights(tmp_path / "a.safetensors")) == ""


def test_eva_loses_its_head_and_keeps_its_blocks(tmp_path: Path) -> None:
    state = {name: torch.zeros(2) for name in eva_vit_g()}
    torch.save(state, tmp_path / "eva_vit_g.pth")
    kept, dropped = convert(tmp_path / "eva_vit_g.pth", tmp_path / "eva.safetensors")
    above = {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert open_weights(tmp_path / "eva.safetensors").shapes.keys() == state.keys() - above
    assert (kept, dropped.total()) == (len(state) - 4, 4)


def test_converted_files_make_the_same_model(tmp_path: Path) -> None:
    whole, target = golden_files() / "model.pth", tmp_path / "model.safetensors"
    kept, dropped = convert(whole, target)
    towers = [name for name in golden().parameters if UNUSED_TOWER.match(name)]
    assert dropped == {"ImageBind's unused towers": len(towers)}
    assert kept == len(open_weights(target).shapes) == len(golden().parameters) - len(towers)
    assert same(build_golden(None, ckpt=str(target)), golden_model(None))


def test_converted_parts_make_the_same_model(tmp_path: Path) -> None:
    for name, prefix in (("eva", "visual_encoder."), ("imagebind", "audio_encoder.")):
        released(tmp_path / f"{name}.pth", prefix, wrapped=False)
        convert(tmp_path / f"{name}.pth", tmp_path / f"{name}.safetensors")
    model = build_golden(
        None,
        vit_ckpt=str(tmp_path / "eva.safetensors"),
        imagebind_ckpt_path=str(tmp_path / "imagebind.safetensors"),
    )
    assert same(model, golden_model(None))
    brought = {report.source.key: report.groups for report in model.load_reports}
    assert brought["model.vit_ckpt"] == {"vision_encoder"}
    assert brought["model.imagebind_ckpt_path"] == {"audio_encoder"}


def test_an_existing_file_is_replaced_only_by_force(tmp_path: Path) -> None:
    saved_branch(tmp_path / "a.safetensors", "video")
    target = tmp_path / "b.pth"
    target.write_bytes(b"old")
    with pytest.raises(RequestError, match=r"b\.pth exists; give another name, or --force"):
        convert(tmp_path / "a.safetensors", target)
    assert target.read_bytes() == b"old"
    convert(tmp_path / "a.safetensors", target, force=True)
    assert len(open_weights(target).shapes) == 58


@pytest.mark.parametrize("force", [True, False])
def test_a_file_is_not_converted_onto_itself(tmp_path: Path, force: bool) -> None:
    saved_branch(tmp_path / "a.safetensors", "video")
    before = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "a.safetensors")
    for name in ("a.safetensors", "link.safetensors"):
        with pytest.raises(RequestError, match="is the file to convert itself; give another name"):
            convert(tmp_path / "a.safetensors", tmp_path / name, force=force)
    assert (tmp_path / "a.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(2, dtype=torch.int64), r"llama_proj\.bias is of type torch\.int64, one of"),
        (torch.ones(2, dtype=torch.complex64), r"llama_proj\.bias is of type torch\.complex64"),
        (torch.ones(1).expand(2**40), r"llama_proj\.bias has shape .* are not stored"),
    ],
)
def test_what_is_no_weight_is_not_converted(
    tmp_path: Path, tensor: torch.Tensor, message: str
) -> None:
    torch.save({"llama_proj.bias": tensor}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=message):
        convert(tmp_path / "a.pth", tmp_path / "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()


@pytest.mark.parametrize("name", ["out.bin", "out", "out.pt", "out.safetensor"])
def test_another_ending_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match=r"OUT must end in \.safetensors or \.pth"):
        convert(tmp_path / "a.pth", tmp_path / name)


def test_a_folder_is_no_target(tmp_path: Path) -> None:
    (tmp_path / "out.pth").mkdir()
    with pytest.raises(RequestError, match=r"out\.pth is a folder"):
        convert(tmp_path / "a.pth", tmp_path / "out.pth", force=True)


def test_a_file_without_anything_needed_is_told(tmp_path: Path) -> None:
    save_file({"Qformer.bert.embeddings.position_ids": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="holds nothing that is needed, only constant buffers"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.pth")
    assert not (tmp_path / "b.pth").exists()


@pytest.mark.parametrize("target", ["b.pth", "b.safetensors"])
def test_a_failure_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    saved_branch(tmp_path / "a.safetensors", "video")

    def fail(content: Any, file: Any, *rest: Any) -> None:
        if isinstance(file, Path):
            file.write_bytes(b"half")
        else:
            file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    monkeypatch.setattr("video_llama.models.weights.save.save_file", fail)
    with pytest.raises(DiskFullError):
        convert(tmp_path / "a.safetensors", tmp_path / target)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_command_says_what_it_did(run: Run, tmp_path: Path) -> None:
    state = {name: torch.zeros(2) for name in full_model().saved("video")}
    torch.save(training_checkpoint(state), tmp_path / "VL.pth")
    target = tmp_path / "VL.safetensors"
    status, output, errors = run("convert", tmp_path / "VL.pth", target)
    assert (status, errors) == (0, "")
    assert output == f"{target}: 58 tensors, 0.0 MB\n  34 of constant buffers left out\n"
    status, output, errors = run("convert", tmp_path / "VL.pth", target)
    assert (status, output) == (1, "")
    assert errors == (
        f"video-llama: error: {target} exists; give another name, or --force to replace it\n"
    )
    status, _, errors = run("convert", tmp_path / "no.pth", tmp_path / "x.safetensors")
    assert status == 1
    assert "no.pth does not exist" in errors
