from __future__ import annotations

import torch
from torch import Tensor

from tests.golden_model import build_golden
from video_llama.models.audio_encoder import (
    FRAMES_PER_PATCH,
    ImageBind,
    PicturePatches,
    resize_positions,
)
from video_llama.models.settings import ImageBindSettings

VIDEO, SOUND = (2, 3, 4, 56, 56), (2, 3, 1, 128, 204)


def noise(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_sound_features_are_as_long_as_those_of_pictures_where_the_settings_say_so() -> None:
    model = build_golden("audio")
    as_they_come = model.encode_segments(noise(SOUND), "audio").norm(dim=-1)
    torch.testing.assert_close(as_they_come, torch.full_like(as_they_come, 20.0))
    model.settings.audio_feature_norm = "unit"
    unit = model.encode_segments(noise(SOUND), "audio").norm(dim=-1)
    torch.testing.assert_close(unit, torch.ones_like(unit))


def test_positions_of_one_grid_serve_another() -> None:
    learned = noise((1, 1 + 4 * 4, 8))
    assert torch.allclose(resize_positions(learned, (4, 4), (4, 4)), learned, atol=1e-6)
    resized = resize_positions(learned, (4, 4), (2, 6))
    assert resized.shape == (1, 13, 8)
    assert torch.equal(resized[:, 0], learned[:, 0]), "the class token has no place"


def test_a_still_picture_is_a_repeated_frame() -> None:
    patches = PicturePatches(8, 28)
    frames = noise((2, 3, 28, 28))
    conv = patches.rgbt_stem.get_submodule("proj.1")
    repeated = conv(frames[:, :, None].expand(-1, -1, FRAMES_PER_PATCH, -1, -1)).flatten(2)
    learned = patches.pos_embedding_helper.get_parameter("pos_embed")[:, 1:]
    torch.testing.assert_close(patches(frames)[:, 1:], repeated.transpose(1, 2) + learned)


def test_every_sound_has_its_own_embedding_of_the_learned_length() -> None:
    sizes = {"vision_embed_dim": 16, "vision_num_blocks": 1, "vision_num_heads": 2}
    sizes |= {"audio_embed_dim": 16, "audio_num_blocks": 1, "audio_num_heads": 2}
    model = ImageBind(ImageBindSettings(**sizes, out_embed_dim=8)).eval()
    with torch.no_grad():
        sounds = model(noise(SOUND), "audio")
        assert sounds.shape == (2, 3, 8)
        assert torch.allclose(sounds.norm(dim=-1), torch.tensor(20.0))
        assert torch.allclose(sounds[1:], model(noise(SOUND)[1:], "audio"), atol=1e-4)
        pictures = model(noise((1, 2, 3, 224, 224)), "vision")
    assert torch.allclose(pictures.norm(dim=-1), torch.tensor(1.0))
