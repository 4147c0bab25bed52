"""Building a model from several weight files: which one wins, and what may be left out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.golden_model import build_golden, golden, golden_settings, weight, write_llama_folder
from video_llama.models.build import build_video_llama
from video_llama.models.settings import ImageBindSettings
from video_llama.models.video_llama import VideoLlama
from video_llama.models.weights.load import targets_of
from video_llama.models.weights.names import GROUPS, LOGIT_SCALE
from video_llama.types import ConfigError, WeightsError

State = dict[str, Tensor]
VIT, IMAGEBIND = "visual_encoder.", "audio_encoder."


def golden_state(*prefixes: str) -> State:
    shapes = golden().parameters
    return {key: weight(key, shapes[key]) for key in shapes if key.startswith(prefixes or "")}


def without_prefix(prefix: str) -> State:
    return {key.removeprefix(prefix): tensor for key, tensor in golden_state(prefix).items()}


@pytest.fixture
def save(tmp_path: Path) -> Callable[[State], str]:
    """Writes a state dict as a checkpoint and returns its path."""
    count = iter(range(100))

    def write(state: State) -> str:
        path = tmp_path / f"file{next(count)}.pth"
        torch.save({"model": state}, path)
        return str(path)

    return write


Save = Callable[[State], str]


def from_files(save: Save, **files: Any) -> VideoLlama:
    """A model from one file for each key, as the released files are split."""
    given: dict[str, Any] = {
        "vit_ckpt": save(without_prefix(VIT)),
        "q_former_model": save(golden_state("ln_vision.", "Qformer.", "query_tokens")),
        "llama_proj_model": save(golden_state("llama_proj.")),
        "imagebind_ckpt_path": save(without_prefix(IMAGEBIND)),
        "ckpt": save(golden_state("video_", "llama_model.")),
        "ckpt_2": save(golden_state("audio_Q", "audio_query", "audio_pos", "audio_llama_proj")),
    }
    return build_golden(None, **{**given, **files})


def test_one_file_and_six_files_give_the_same_model(save: Save) -> None:
    whole, split = targets_of(build_golden(None)), targets_of(from_files(save))
    assert whole.keys() == split.keys()
    assert all(torch.equal(whole[name], split[name]) for name in whole)
    assert all(torch.equal(split[n], t) for n, t in golden_state().items() if n in split)


def test_later_files_win(save: Save) -> None:
    first, second, third = (
        {
            name: torch.full_like(tensor, value)
            for name, tensor in golden_state("llama_proj.").items()
        }
        for value in (1.0, 2.0, 3.0)
    )
    rest = golden_state("video_", "llama_model.")
    model = from_files(save, llama_proj_model=save(first))
    assert model.video_branch.proj.bias.unique().tolist() == [1.0]
    model = from_files(save, llama_proj_model=save(first), ckpt=save({**rest, **second}))
    assert model.video_branch.proj.bias.unique().tolist() == [2.0]
    audio = golden_state("audio_Q", "audio_query", "audio_pos", "audio_llama_proj")
    model = from_files(save, ckpt=save({**rest, **second}), ckpt_2=save({**audio, **third}))
    assert model.video_branch.proj.bias.unique().tolist() == [3.0]


def test_loads_are_logged_with_counts(save: Save, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="video_llama"):
        model = build_golden(None)
    assert "ImageBind's unused towers not needed" in caplog.text
    assert [len(report.loaded) for report in model.load_reports] == [len(targets_of(model)) - 1]


def test_scale_of_sounds_comes_from_the_file(save: Save) -> None:
    state = without_prefix(IMAGEBIND)
    state[LOGIT_SCALE.removeprefix(IMAGEBIND)] = torch.tensor(7.0).log()
    model = from_files(save, imagebind_ckpt_path=save(state))
    assert model.audio_encoder is not None
    sounds = model.audio_encoder(golden().input("encode_audio/audio4/in_audio"), "audio")
    assert torch.allclose(sounds.norm(dim=-1), torch.tensor(7.0))


def bicubic(learned: Tensor, side: int) -> Tensor:
    """Class token and positions of another grid, computed without the code under test."""
    old = int((learned.shape[1] - 1) ** 0.5)
    grid = learned[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([learned[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def test_positions_of_the_vision_encoder_are_resized(save: Save) -> None:
    model = from_files(save, image_size=84)
    assert model.vision_encoder is not None
    learned = golden_state("visual_encoder.pos_embed")["visual_encoder.pos_embed"]
    assert torch.allclose(model.vision_encoder.vit.pos_embed, bicubic(learned, 6), atol=1e-6)
    assert model.encode_video(torch.zeros(1, 3, 1, 84, 84)).shape == (1, 6, 64)


def test_positions_of_imagebind_are_resized(save: Save) -> None:
    sizes = {**vars(golden_settings().imagebind_config), "image_size": 112}
    model = from_files(save, imagebind_config=ImageBindSettings(**sizes))
    name = f"{IMAGEBIND}modality_preprocessors.vision.pos_embedding_helper.pos_embed"
    assert torch.allclose(targets_of(model)[name], bicubic(golden_state(name)[name], 8), atol=1e-6)


PART = "video_Qformer.bert.encoder.layer.1."


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda s: {n: t for n, t in s.items() if PART not in n}, "26 tensors are missing"),
        (lambda s: {**s, "video_Qformer.new.weight": torch.ones(2)}, "1 unknown tensors.*new"),
        (lambda s: {**s, "elsewhere.weight": torch.ones(2)}, "1 unknown tensors.*elsewhere"),
        (lambda s: {"elsewhere.weight": torch.ones(2)}, "no tensor .* holds elsewhere.weight"),
        (
            lambda s: {**s, "video_query_tokens": torch.ones(1, 7, 48)},
            r"\[1, 7, 48\] in the file and \[1, 6, 48\].*set model.num_video_query_token to 7",
        ),
        (
            lambda s: {**s, "video_frame_position_embedding.weight": torch.ones(64, 48)},
            "set model.max_frame_pos to 64",
        ),
        (
            lambda s: {**s, "llama_proj.bias": torch.ones(128)},
            "128-wide LLM with a 64-wide LLM",
        ),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(
    changed: Callable[[State], State], message: str, save: Save
) -> None:
    state = golden_state("video_", "llama_proj.")
    with pytest.raises(WeightsError, match=f"(?s)model.ckpt: .*file.*{message}"):
        build_golden(None, ckpt=save(changed(state)), random_init=True)


def test_part_of_a_group_is_refused_though_the_rest_may_be_random(save: Save) -> None:
    state = golden_state("audio_query_tokens")
    with pytest.raises(WeightsError, match="tensors are missing, first audio_"):
        build_golden("audio", ckpt_2=save(state), random_init=True)


@pytest.mark.parametrize(
    ("key", "group"),
    [
        ("vit_ckpt", "vision_encoder"),
        ("q_former_model", "vision_norm"),
        ("llama_proj_model", "video_proj"),
        ("imagebind_ckpt_path", "audio_encoder"),
        ("ckpt", "video_branch"),
        ("ckpt_2", "audio_branch"),
    ],
)
def test_a_part_without_a_file_is_an_error_that_names_its_key(
    key: str, group: str, save: Save
) -> None:
    with pytest.raises(WeightsError, match=rf"weights of {group}; give it in model\.\w+, or set"):
        from_files(save, **{key: None})


def test_an_llm_folder_without_weights_is_an_error(save: Save, tmp_path: Path) -> None:
    folder = write_llama_folder(tmp_path / "llama")
    with pytest.raises(WeightsError, match=r"language_model; give it in model\.llama_model"):
        from_files(save, ckpt=save(golden_state("video_")), llama_model=str(folder))


def test_training_the_video_branch_may_start_without_files_of_its_own(save: Save) -> None:
    files = {"frozen_llama_proj": False, "frozen_video_Qformer": False, "llama_proj_model": None}
    model = from_files(save, ckpt=save(golden_state("llama_model.")), **files)
    assert model.random_modules == ["video_branch"]


EYES: dict[str, Any] = {"vit_ckpt": None, "q_former_model": None}


def audio_training(save: Save, **changes: Any) -> VideoLlama:
    llm = save(golden_state("llama_model."))
    frozen = {"frozen_audio_Qformer": False, "ckpt": llm, "ckpt_2": None, "llama_proj_model": None}
    return from_files(save, **{**frozen, **changes})


def test_training_the_audio_branch_needs_no_eyes(save: Save) -> None:
    model = audio_training(save, **EYES)
    assert model.vision_encoder is None
    assert model.encode_audio(torch.zeros(1, 2, 3, 224, 224), "vision").shape == (1, 3, 64)
    with pytest.raises(ConfigError, match=r"no vision encoder.*model\.vit_ckpt"):
        model.encode_video(torch.zeros(1, 3, 1, 56, 56))


@pytest.mark.parametrize("key", EYES)
def test_one_eye_alone_is_an_error(key: str, save: Save) -> None:
    with pytest.raises(WeightsError, match="give it in model"):
        audio_training(save, **{key: None})


def random_model(seed: int = 0, **changes: Any) -> VideoLlama:
    settings = golden_settings(None, **{"ckpt": None, "random_init": True, **changes})
    return build_video_llama(settings, device="cpu", seed=seed)


def random_targets(**changes: Any) -> State:
    return targets_of(random_model(**changes))


def test_random_values_follow_from_the_seed() -> None:
    first, again, other = random_targets(), random_targets(), random_targets(seed=1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    same = [name for name in first if torch.equal(first[name], other[name])]
    assert all(first[name].unique().numel() == 1 for name in same)  # zero biases, unit norms
    assert {group for group, keys in GROUPS.items() if not _differ(first, other, keys)} == {
        "vision_norm"
    }


def test_parts_of_one_shape_get_different_random_values() -> None:
    targets = random_targets()
    assert targets["query_tokens"].shape == targets["video_query_tokens"].shape
    assert not torch.equal(targets["query_tokens"], targets["video_query_tokens"])


def _differ(first: State, other: State, prefixes: tuple[str, ...]) -> bool:
    return any(
        not torch.equal(first[name], other[name]) for name in first if name.startswith(prefixes)
    )


def test_random_values_of_a_part_do_not_depend_on_what_else_is_loaded(save: Save) -> None:
    all_random = random_targets()
    some = targets_of(from_files(save, ckpt_2=None, vit_ckpt=None, random_init=True))
    for name in some:
        if name.startswith((VIT, *GROUPS["audio_branch"])):
            assert torch.equal(some[name], all_random[name]), name
        elif name != LOGIT_SCALE:
            assert torch.equal(some[name], weight(name, list(some[name].shape))), name


def test_random_values_leave_the_callers_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    random_model()
    assert torch.equal(torch.rand(3), expected)


PREFIX = "audio_encoder."


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The golden weights, ImageBind's in a file of its own."""
    folder = tmp_path_factory.mktemp("weights")
    state = {key: weight(key, shape) for key, shape in golden().parameters.items()}
    heard = {k.removeprefix(PREFIX): t for k, t in state.items() if k.startswith(PREFIX)}
    rest = {k: t for k, t in state.items() if not k.startswith(PREFIX)}
    torch.save(heard, folder / "imagebind.pth")
    torch.save({"model": rest}, folder / "rest.pth")
    return {
        "imagebind_ckpt_path": str(folder / "imagebind.pth"),
        "ckpt": str(folder / "rest.pth"),
    }


def build(files: dict[str, str], *, audio_on_demand: bool) -> VideoLlama:
    settings = golden_settings(None, **files)
    return build_video_llama(settings, device="cpu", seed=0, audio_on_demand=audio_on_demand)


def sound(model: VideoLlama) -> Tensor:
    spectrograms = torch.randn(1, 2, 1, 128, 204, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return model.encode_audio(spectrograms)


def weights_there(model: VideoLlama) -> bool:
    assert model.audio_encoder is not None
    return not any(parameter.is_meta for parameter in model.audio_encoder.parameters())


def test_pictures_need_no_weights_of_sounds_and_sounds_bring_them(files: dict[str, str]) -> None:
    whole, later = (build(files, audio_on_demand=demand) for demand in (False, True))
    assert weights_there(whole)
    video = torch.randn(1, 3, 2, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(later.encode_video(video), whole.encode_video(video))
    assert not weights_there(later)
    assert later.random_modules == whole.random_modules == []
    assert torch.equal(sound(later), sound(whole))
    assert weights_there(later)
    assert targets_of(whole).keys() == targets_of(later).keys()
    assert all(torch.equal(t, targets_of(later)[n]) for n, t in targets_of(whole).items())
    keys = [report.source.key for report in later.load_reports]
    assert keys == ["model.ckpt", "model.imagebind_ckpt_path"]
    sound(later)
    assert len(later.load_reports) == 2
    assert not any(parameter.is_inference() for parameter in later.parameters())


def test_a_wrong_file_is_found_before_the_first_sound(files: dict[str, str]) -> None:
    with pytest.raises(WeightsError, match="imagebind_ckpt_path"):
        build({**files, "imagebind_ckpt_path": files["ckpt"]}, audio_on_demand=True)


def test_a_scale_of_a_branch_file_outlives_the_late_arrival(
    files: dict[str, str], tmp_path: Path
) -> None:
    state = {k: t for k, t in torch.load(files["ckpt"])["model"].items() if k.startswith("audio_")}
    torch.save({"model": {**state, LOGIT_SCALE: torch.tensor(1.25)}}, tmp_path / "branch.pth")
    given = {**files, "ckpt_2": str(tmp_path / "branch.pth")}
    whole, later = (build(given, audio_on_demand=demand) for demand in (False, True))
    assert torch.equal(sound(later), sound(whole))
    assert later.get_buffer(LOGIT_SCALE).item() == 1.25


def test_without_a_file_of_its_own_nothing_is_put_off() -> None:
    settings = golden_settings(None)
    assert weights_there(build_video_llama(settings, device="cpu", seed=0, audio_on_demand=True))
