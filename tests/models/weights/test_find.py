"""A folder of weights is told apart by what is in its files, whatever their names are."""

from __future__ import annotations

import json
import os
import pickle
import resource as resource_usage
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import full_model
from video_llama.common.io import package_file, resource
from video_llama.config.build import build_model
from video_llama.config.load import load_config
from video_llama.models.weights.checks import LFS_MARK, RELEASED_SIZES
from video_llama.models.weights.files import open_weights
from video_llama.models.weights.find import find_weights, identify
from video_llama.models.weights.save import Manifest
from video_llama.types import ConfigError, WeightsError

WIDTHS = {"7b": 4096, "13b": 5120}
EVAL = resource("eval_configs/video_llama_eval_withaudio.yaml")


def write_llm(folder: Path, size: str = "7b", vocabulary: int = 32000) -> Path:
    """A LLaMA folder whose one shard is damaged: nobody has to open it."""
    folder.mkdir(parents=True)
    sizes = {"model_type": "llama", "vocab_size": vocabulary, **RELEASED_SIZES[size]}
    (folder / "config.json").write_text(json.dumps(sizes), "utf-8")
    (folder / "tokenizer.model").write_bytes(b"not opened")
    (folder / "pytorch_model-00001-of-00001.bin").write_bytes(b"not opened")
    return folder


def write_parts(folder: Path, size: str = "7b", names: dict[str, str] | None = None) -> Path:
    """The released files, under other names where `names` gives one."""
    width = WIDTHS[size]
    files: dict[str, Any] = {
        "eva_vit_g.pth": full_model.eva_vit_g(),
        "blip2_pretrained_flant5xxl.pth": full_model.blip2_flant5xxl(with_text_branch=True),
        "pretrained_minigpt4.pth": full_model.minigpt4(width),
        "imagebind_path/imagebind_huge.pth": full_model.imagebind_huge(),
        f"VL_LLaMA_2_{size.upper()}_Finetuned.pth": full_model.branch_file("video", width),
        f"AL_LLaMA_2_{size.upper()}_Finetuned.pth": full_model.branch_file("audio", width),
    }
    for name, content in files.items():
        path = folder / (names or {}).get(name, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        full_model.write(path, content)
    return folder


@pytest.fixture
def released(tmp_path: Path) -> Path:
    write_llm(tmp_path / "ckpt/llama-2-7b-chat-hf")
    return write_parts(tmp_path / "ckpt")


def refusal(folder: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(EVAL, overrides, weights=folder)
    return str(caught.value)


@pytest.mark.parametrize("size", ["7b", "13b"])
def test_released_files_are_assigned(size: str, tmp_path: Path) -> None:
    write_llm(tmp_path / f"llama-2-{size}-chat-hf", size)
    folder = write_parts(tmp_path, size)
    settings = load_config(weights=folder).model
    assert settings.llama_model == str(folder / f"llama-2-{size}-chat-hf")
    assert settings.vit_ckpt == str(folder / "eva_vit_g.pth")
    assert settings.q_former_model == str(folder / "blip2_pretrained_flant5xxl.pth")
    assert settings.imagebind_ckpt_path == str(folder / "imagebind_path/imagebind_huge.pth")
    assert settings.ckpt == str(folder / f"VL_LLaMA_2_{size.upper()}_Finetuned.pth")
    assert settings.ckpt_2 == str(folder / f"AL_LLaMA_2_{size.upper()}_Finetuned.pth")
    assert settings.equip_audio_branch
    # The YAML of a chat names no first projection.
    assert settings.llama_proj_model is None


def test_a_training_takes_only_the_parts_that_its_yaml_names(released: Path) -> None:
    yaml = resource("train_configs/visionbranch_stage1_pretrain.yaml")
    settings = load_config(yaml, [f"model.weights={released}"]).model
    assert settings.llama_proj_model == str(released / "pretrained_minigpt4.pth")
    assert settings.ckpt is None
    assert settings.imagebind_ckpt_path is None


def test_names_do_not_matter(tmp_path: Path) -> None:
    write_llm(tmp_path / "a/b/language")
    names = {
        "eva_vit_g.pth": "one.pt",
        "blip2_pretrained_flant5xxl.pth": "x/two.bin",
        "VL_LLaMA_2_7B_Finetuned.pth": "AL_LLaMA_2_7B_Finetuned.pth",  # exchanged
        "AL_LLaMA_2_7B_Finetuned.pth": "VL_LLaMA_2_7B_Finetuned.pth",
    }
    folder = write_parts(tmp_path, names=names)
    settings = load_config(weights=folder).model
    assert settings.vit_ckpt == str(tmp_path / "one.pt")
    assert settings.q_former_model == str(tmp_path / "x/two.bin")
    assert settings.ckpt == str(tmp_path / "AL_LLaMA_2_7B_Finetuned.pth")
    assert settings.ckpt_2 == str(tmp_path / "VL_LLaMA_2_7B_Finetuned.pth")


def test_neither_do_suffixes(tmp_path: Path) -> None:
    write_llm(tmp_path / "llama-2")
    names = {"eva_vit_g.pth": "eva", "VL_LLaMA_2_7B_Finetuned.pth": "video.v2"}
    folder = write_parts(tmp_path, names=names)
    state = {"audio_query_tokens": torch.zeros(1, 8, 768)}
    (folder / "AL_LLaMA_2_7B_Finetuned.pth").unlink()
    save_file(state, folder / "audio.pth")
    settings = load_config(weights=folder).model
    assert settings.vit_ckpt == str(folder / "eva")
    assert settings.ckpt == str(folder / "video.v2")
    assert settings.ckpt_2 == str(folder / "audio.pth")


ORIGINAL_VICUNA = {"prompt_template": "###Human: {} ###Assistant: ", "prompt_path": "p.txt"}


@pytest.mark.parametrize(
    ("config", "name", "model_type"),
    [
        (ORIGINAL_VICUNA, "x.pth", "pretrain_vicuna"),
        ({"end_sym": "</s>", "prompt_path": "p.txt"}, "x.pth", "pretrain_llama_v2"),
        ({"end_sym": "\n"}, "finetune-vicuna7b-v2.pth", "pretrain_vicuna"),
        ({"end_sym": "\n"}, "finetune-billa7b-zh.pth", "pretrain_vicuna"),
        ("damaged", "VL_LLaMA_2_7B_Pretrained.pth", "pretrain_llama_v2"),
        # What a training has saved goes before what a file is called.
        (ORIGINAL_VICUNA, "llama-2.pth", "pretrain_vicuna"),
    ],
)
def test_a_branch_of_the_original_tells_its_conversation_format(
    config: Any, name: str, model_type: str, tmp_path: Path
) -> None:
    write_llm(tmp_path / "language")
    folder = write_parts(tmp_path)
    for old in ("VL_LLaMA_2_7B_Finetuned.pth", "AL_LLaMA_2_7B_Finetuned.pth"):
        (folder / old).unlink()
    content = full_model.branch_file("video") | {"config": {"model": config}}
    full_model.write(folder / name, content)
    (folder / "imagebind_path/imagebind_huge.pth").unlink()
    assert load_config(weights=folder).model.model_type == model_type


def test_an_unknown_conversation_format_is_no_guess(tmp_path: Path) -> None:
    write_llm(tmp_path / "language")
    names = {f"{kind}_LLaMA_2_7B_Finetuned.pth": f"{kind}.pth" for kind in ("VL", "AL")}
    folder = write_parts(tmp_path, names=names)
    with pytest.raises(ConfigError, match=r"nothing in .* says with which conversation format"):
        load_config(weights=folder)
    options = ["model.model_type=pretrain_vicuna"]
    assert load_config(None, options, weights=folder).model.template == "vicuna"
    # The user's own YAML says it.
    assert load_config(EVAL, weights=folder).model.template == "llama_v2"
    chat = json.dumps({"chat_template": "{{ '[INST] <<SYS>>' }}"})
    (folder / "language/tokenizer_config.json").write_text(chat, "utf-8")
    assert load_config(weights=folder).model.template == "llama_v2"


def test_names_that_disagree_about_the_conversation_format_are_refused(tmp_path: Path) -> None:
    write_llm(tmp_path / "vicuna-7b")
    folder = write_parts(tmp_path)
    with pytest.raises(
        ConfigError, match=r"mixes conversation formats: vicuna-7b .* is for vicuna"
    ):
        load_config(weights=folder)


def test_a_folder_above_does_not_tell_the_conversation_format(tmp_path: Path) -> None:
    write_llm(tmp_path / "vicuna-project/llama-2-7b-chat-hf")
    folder = write_parts(tmp_path / "vicuna-project")
    assert load_config(weights=folder).model.template == "llama_v2"


def test_a_yaml_may_leave_all_paths_to_the_folder(released: Path) -> None:
    yaml = released / "chat.yaml"
    yaml.write_text(f"model:\n  weights: {released}\n", "utf-8")
    settings = load_config(yaml).model
    assert settings.ckpt_2 == str(released / "AL_LLaMA_2_7B_Finetuned.pth")
    assert settings.llama_proj_model is None
    assert settings.template == "llama_v2"


def test_a_model_without_audio_branch_needs_no_files_for_it(released: Path) -> None:
    (released / "AL_LLaMA_2_7B_Finetuned.pth").unlink()
    (released / "imagebind_path/imagebind_huge.pth").unlink()
    settings = load_config(EVAL, ["model.equip_audio_branch=false"], weights=released).model
    assert settings.ckpt == str(released / "VL_LLaMA_2_7B_Finetuned.pth")
    assert settings.ckpt_2 is settings.imagebind_ckpt_path is None


def test_a_folder_without_sound_takes_the_configuration_without_sound(released: Path) -> None:
    (released / "AL_LLaMA_2_7B_Finetuned.pth").unlink()
    (released / "imagebind_path/imagebind_huge.pth").unlink()
    settings = load_config(weights=released).model
    assert not settings.equip_audio_branch
    assert settings.ckpt == str(released / "VL_LLaMA_2_7B_Finetuned.pth")


@pytest.mark.parametrize(
    ("name", "vocabulary", "size", "model_type"),
    [
        ("llama-2-7b-chat-hf", 32000, "7b", "pretrain_llama_v2"),
        ("vicuna-7b", 32000, "7b", "pretrain_vicuna"),
        ("vicuna-13b-v1.1", 32001, "13b", "pretrain_vicuna"),
        ("BiLLa-7B-SFT", 46943, "7b", "pretrain_vicuna"),
        ("Ziya-LLaMA-13B-v1", 39424, "13b", "pretrain_vicuna"),
        ("models--lmsys--vicuna-7b-v1.5/snapshots/0a1b2c", 32000, "7b", "pretrain_vicuna"),
    ],
)
def test_the_name_of_the_llm_tells_its_conversation_format(
    name: str, vocabulary: int, size: str, model_type: str, tmp_path: Path
) -> None:
    write_llm(tmp_path / name, size, vocabulary)
    branches = (f"{kind}_LLaMA_2_{size.upper()}_Finetuned.pth" for kind in ("VL", "AL"))
    names = {branch: f"finetune_{branch[:2]}.pth" for branch in branches}
    folder = write_parts(tmp_path, size, names)
    assert load_config(weights=folder).model.model_type == model_type
    # What the user says goes before what the name says.
    options = ["model.model_type=pretrain_vicuna"]
    assert load_config(None, options, weights=folder).model.template == "vicuna"


def test_a_snapshot_of_the_hub_is_looked_into_once(tmp_path: Path) -> None:
    store = write_parts(tmp_path / "models--DAMO--VL/blobs")
    snapshot = tmp_path / "models--DAMO--VL/snapshots/abc"
    write_llm(snapshot / "llama-2-7b-chat-hf")
    for number, file in enumerate(sorted(store.rglob("*.pth"))):
        blob = store / f"{number:064x}"
        file.rename(blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    (tmp_path / "models--DAMO--VL/snapshots/def").symlink_to(snapshot)
    settings = load_config(weights=tmp_path).model
    assert settings.ckpt == str(snapshot / "VL_LLaMA_2_7B_Finetuned.pth")


def test_of_two_revisions_of_the_hub_the_current_one_is_taken(released: Path) -> None:
    repository = released / "models--meta-llama--Llama-2-7b-chat-hf"
    shutil.rmtree(released / "llama-2-7b-chat-hf")
    for revision in ("aaa", "bbb", "ccc"):
        write_llm(repository / "snapshots" / revision)
    assert "3 candidates for the language model" in refusal(released)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("bbb\n")
    assert load_config(weights=released).model.llama_model == str(repository / "snapshots/bbb")


def test_of_two_sizes_the_one_that_fits_the_language_model_is_taken(released: Path) -> None:
    write_parts(released / "more", "13b")
    for shared in ("eva_vit_g.pth", "blip2_pretrained_flant5xxl.pth", "pretrained_minigpt4.pth"):
        (released / "more" / shared).unlink()
    (released / "more/imagebind_path/imagebind_huge.pth").unlink()
    settings = load_config(weights=released).model
    assert settings.ckpt == str(released / "VL_LLaMA_2_7B_Finetuned.pth")
    write_llm(released / "llama-2-13b-chat-hf", "13b")
    text = refusal(released)
    assert "2 candidates for the language model: llama-2-13b-chat-hf (13B" in text
    assert "2 candidates for the video branch" in text
    assert "--options model.ckpt=..." in text
    # A path that is named is settled.
    chosen = [f"model.{key}=x" for key in ("llama_model", "ckpt", "ckpt_2")]
    assert load_config(EVAL, chosen, weights=released).model.ckpt == "x"


def test_of_two_first_projections_the_one_that_fits_is_taken(released: Path) -> None:
    full_model.write(released / "pretrained_minigpt4_13b.pth", full_model.minigpt4(5120))
    yaml = resource("train_configs/visionbranch_stage1_pretrain.yaml")
    settings = load_config(yaml, weights=released).model
    assert settings.llama_proj_model == str(released / "pretrained_minigpt4.pth")
    (released / "pretrained_minigpt4.pth").unlink()
    with pytest.raises(ConfigError, match="a first projection for an LLM of width 5120"):
        load_config(yaml, weights=released)


def test_a_language_model_of_another_size_is_refused(tmp_path: Path) -> None:
    write_llm(tmp_path / "llama-2-13b-chat-hf", "13b")
    text = refusal(write_parts(tmp_path, "7b"))
    assert "a video branch for an LLM of width 4096 (VL_LLaMA_2_7B_Finetuned.pth" in text
    assert "has width 5120: they are of different sizes" in text


def test_all_that_is_missing_is_named_with_its_source(released: Path) -> None:
    (released / "eva_vit_g.pth").unlink()
    (released / "VL_LLaMA_2_7B_Finetuned.pth").write_bytes(LFS_MARK + b".com/spec/v1\noid x\n")
    (released / "AL_LLaMA_2_7B_Finetuned.pth").write_bytes(b"")
    text = refusal(released)
    assert "no vision transformer (released as eva_vit_g.pth, from https://github.com" in text
    assert "no video branch (released as VL_LLaMA_2_7B_Finetuned.pth, from https://hug" in text
    assert "VL_LLaMA_2_7B_Finetuned.pth is a Git-LFS pointer" in text
    assert "AL_LLaMA_2_7B_Finetuned.pth is empty" in text
    assert "Found: language model llama-2-7b-chat-hf (7B" in text


def test_two_candidates_are_both_named(released: Path) -> None:
    full_model.write(released / "old.pth", full_model.branch_file("video"))
    text = refusal(released)
    assert "2 candidates for the video branch: VL_LLaMA" in text
    assert "old.pth" in text


def test_the_newest_checkpoint_of_a_run_is_taken(released: Path) -> None:
    (released / "VL_LLaMA_2_7B_Finetuned.pth").unlink()
    manifest = Manifest(
        branch="video",
        stage=2,
        template="vicuna",
        llm_width=4096,
        llm_layers=32,
        frames=8,
        clips=8,
        num_query_token=32,
        num_branch_query_token=32,
        step=200,
        frozen_hash="",
    )
    for step in ("step-000100", "step-000200"):
        path = released / f"run/checkpoints/{step}/branch.safetensors"
        path.parent.mkdir(parents=True)
        state = {"video_query_tokens": torch.zeros(1, 32, 768)}
        save_file(state, path, manifest.to_metadata())
    settings = load_config(EVAL, weights=released).model
    assert settings.ckpt is not None
    assert settings.ckpt.endswith("step-000200/branch.safetensors")
    # A branch knows what it was trained with; the name of the LLM is only a sign.
    assert settings.model_type == "pretrain_vicuna"


def test_a_whole_model_is_all_of_its_parts(tmp_path: Path) -> None:
    files = sorted(package_file("presets/tiny").glob("*.safetensors"))
    state = {name: tensor for file in files for name, tensor in load_file(file).items()}
    save_file(state, tmp_path / "whole.safetensors")
    keys = [part.key for part in identify(tmp_path / "whole.safetensors")]
    assert keys == ["vit_ckpt", "q_former_model", "imagebind_ckpt_path", "ckpt", "ckpt_2"]


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_quantised_llm_is_no_candidate_and_said(method: str, released: Path) -> None:
    config = released / "llama-2-7b-chat-hf/config.json"
    values = json.loads(config.read_text("utf-8"))
    values["quantization_config"] = {"quant_method": method}
    config.write_text(json.dumps(values), "utf-8")
    text = refusal(released)
    assert "no language model" in text
    assert f"the weights are quantised ({method})" in text


def test_metas_own_form_is_named(released: Path) -> None:
    state = {"layers.0.attention.wq.weight": torch.zeros(2, 2)}
    full_model.write(released / "consolidated.00.pth", state)
    (released / "eva_vit_g.pth").unlink()
    assert "consolidated.00.pth is LLaMA as Meta releases it" in refusal(released)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/should_not_exist",)


def test_no_code_of_a_file_runs(tmp_path: Path) -> None:
    torch.save({"video_query_tokens": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evil()))
    inventory = find_weights(tmp_path)
    assert list(inventory.parts) == []
    assert len(inventory.unusable) == 2
    assert not Path("/tmp/should_not_exist").exists()


def sparse_safetensors(path: Path, shape: list[int]) -> None:
    size = 4 * shape[0] * shape[1] * shape[2]
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}
    header = json.dumps({"video_query_tokens": entry}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)


def sparse_pickle(path: Path, shape: list[int]) -> None:
    # Memory that nobody writes to is not taken, and a file with holes takes no space.
    with torch.serialization.skip_data():
        torch.save({"model": {"audio_query_tokens": torch.empty(shape)}}, path)


def pages() -> int:
    """Pages of memory that this process has touched: what it has read of mapped files is there."""
    usage = resource_usage.getrusage(resource_usage.RUSAGE_SELF)
    return usage.ru_minflt + usage.ru_majflt


def test_large_files_are_not_read(tmp_path: Path) -> None:
    shape = [1, 1 << 20, 768]  # 3 GB
    sparse_safetensors(tmp_path / "a.safetensors", shape)
    sparse_pickle(tmp_path / "b.pth", shape)
    identify(tmp_path / "a.safetensors")  # once to import what it takes
    before = pages()
    parts = find_weights(tmp_path).parts
    touched = pages() - before
    assert [part.key for part in parts] == ["ckpt", "ckpt_2"]
    assert touched < 200
    # The count would notice: a quarter of one file, read.
    before = pages()
    open_weights(tmp_path / "b.pth").tensor("audio_query_tokens")[0, : 1 << 18, 0].sum()
    assert pages() - before > 200


def test_a_large_file_that_can_only_be_read_whole_is_refused(tmp_path: Path) -> None:
    old = tmp_path / "old.pth"
    with old.open("wb") as file:
        file.write(b"\x80\x02")
        file.truncate(1 << 30)
    with pytest.raises(WeightsError, match="can only be read whole; make a new one with"):
        identify(old)


def test_other_files_and_loops_of_links_cost_nothing(released: Path) -> None:
    (released / "notes").mkdir()
    for number in range(10_000):
        (released / f"notes/{number}.txt").write_text("no weights")
    os.mkfifo(released / "pipe")  # to open it would wait for ever
    (released / "bert").mkdir()
    (released / "bert/config.json").write_text('{"model_type": "bert"}')
    (released / "loop").symlink_to(released)
    (released / "broken.pth").symlink_to(released / "nowhere")
    inventory = find_weights(released)
    assert [part.key for part in inventory.parts].count("ckpt") == 1
    assert len(inventory.unusable) == 1


def test_a_disk_full_of_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("video_llama.models.weights.find.MAX_ENTRIES", 20)
    for number in range(30):
        folder = tmp_path / f"{number % 3}"
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.txt").write_text("")
    with pytest.raises(ConfigError, match="holds more than 20 files; give the folder of one model"):
        find_weights(tmp_path)


def test_an_incomplete_language_model_is_named(released: Path) -> None:
    (released / "llama-2-7b-chat-hf/tokenizer.model").unlink()
    assert "llama-2-7b-chat-hf has no tokenizer.model; its download is incomplete" in refusal(
        released
    )


def test_a_branch_beside_a_language_model_is_no_shard_of_it(tmp_path: Path) -> None:
    names = {"VL_LLaMA_2_7B_Finetuned.pth": "model_video.pth"}
    folder = write_parts(write_llm(tmp_path / "llama-2"), names=names)
    assert load_config(weights=folder).model.ckpt == str(folder / "model_video.pth")


def test_a_store_of_very_many_files_is_refused(tmp_path: Path) -> None:
    for number in range(1001):
        (tmp_path / f"{number}.pth").write_bytes(b"")
    start = time.monotonic()
    with pytest.raises(ConfigError, match="more than 1000 weight files"):
        find_weights(tmp_path)
    assert time.monotonic() - start < 60  # a bound on hanging, not on speed


@pytest.mark.parametrize(
    ("name", "text"),
    [("missing", "does not exist; give the folder"), ("file", "is a file; give the folder")],
)
def test_what_is_no_folder_is_refused(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=f"model.weights: .*{name} {text}"):
        load_config(weights=tmp_path / name)


def test_an_empty_folder_says_what_is_needed(tmp_path: Path) -> None:
    text = refusal(tmp_path)
    assert text.count("released as") == 6
    assert text.endswith("Found: no part of the model")


def test_a_folder_named_in_the_yaml_has_its_line(tmp_path: Path) -> None:
    yaml = tmp_path / "chat.yaml"
    yaml.write_text(EVAL.read_text("utf-8").replace("model:\n", f"model:\n  weights: {tmp_path}\n"))
    with pytest.raises(ConfigError, match=r"chat.yaml:\d+: model.weights: .* has no language"):
        load_config(yaml)


def test_tiny_parts_take_the_tiny_configuration() -> None:
    settings = load_config(weights=package_file("presets/tiny")).model
    assert settings.image_size == 84
    assert settings.ckpt == str(package_file("presets/tiny/video_branch.safetensors"))


def test_a_model_of_renamed_files_is_the_same(tmp_path: Path) -> None:
    preset = package_file("presets/tiny")
    shutil.copytree(preset / "llama", tmp_path / "decoder")
    # The names of two branches exchanged, and no or another suffix.
    names = {
        "eva": "a/eyes",
        "qformer": "between.pth",
        "imagebind": "ears.bin",
        "video_branch": "audio_branch.safetensors",
        "audio_branch": "video_branch.safetensors",
    }
    (tmp_path / "a").mkdir()
    for name, other in names.items():
        shutil.copy(preset / f"{name}.safetensors", tmp_path / other)
    usual = build_model(load_config()).state_dict()
    found = build_model(load_config(weights=tmp_path)).state_dict()
    assert usual.keys() == found.keys()
    assert all(torch.equal(usual[name], found[name]) for name in usual)


def test_unknown_sizes_need_a_configuration(tmp_path: Path) -> None:
    save_file({"patch_embed.proj.weight": torch.zeros(64, 3, 14, 14)}, tmp_path / "a.safetensors")
    with pytest.raises(
        ConfigError, match=r"no shipped configuration has \(64\); give .*--cfg-path"
    ):
        load_config(weights=tmp_path)


@pytest.fixture(autouse=True)
def no_code_ran() -> Iterator[None]:
    Path("/tmp/should_not_exist").unlink(missing_ok=True)
    yield
    assert not Path("/tmp/should_not_exist").exists()
