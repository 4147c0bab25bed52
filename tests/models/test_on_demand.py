"""ImageBind's weights arrive with the first sound, and are those that would have been there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.golden_model import golden, golden_settings, weight
from video_llama.models.build import build_video_llama
from video_llama.models.video_llama import VideoLlama
from video_llama.models.weights.load import targets_of
from video_llama.models.weights.names import LOGIT_SCALE
from video_llama.types import WeightsError

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
    assert later.random_parts == whole.random_parts == []
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
