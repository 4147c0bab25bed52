"""The composed model: what trains, what its branches return and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.golden_model import build_golden, golden_model
from video_llama.models.settings import Branch
from video_llama.models.video_llama import splice
from video_llama.models.weights.names import original_name, trainable_prefixes
from video_llama.types import CaptionBatch, ConfigError, InstructionBatch

VIDEO, SOUND = (2, 3, 4, 56, 56), (2, 3, 1, 128, 204)
FRAMES = (2, 3, 3, 224, 224)


def noise(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def captions(shape: tuple[int, ...] = VIDEO) -> CaptionBatch:
    return CaptionBatch(pixel_values=noise(shape), captions=["a red car", "a dog"])


def batch_for(branch: Branch) -> CaptionBatch:
    return captions(VIDEO if branch == "video" else (2, 3, 3, 224, 224))


BRANCHES: tuple[Branch, ...] = ("video", "audio")
FROZEN = ("vision_encoder", "frame_qformer", "audio_encoder", "language_model")


@pytest.mark.parametrize("branch", BRANCHES)
def test_only_the_trained_branch_enters_training_mode(branch: Branch) -> None:
    model = build_golden(branch)
    assert not any(module.training for module in model.modules())
    assert model.train() is model
    training = {name for name, module in model.named_modules() if module.training}
    assert {name.partition(".")[0] for name in training} == {"", f"{branch}_branch"}
    trained = dict(model.named_children())[f"{branch}_branch"]
    assert all(module.training for module in trained.modules())
    assert any(isinstance(module, nn.Dropout) and module.p for module in trained.modules())
    model.eval()
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("branch", BRANCHES)
def test_gradients_reach_the_trained_branch_alone(branch: Branch) -> None:
    model = build_golden(branch).train()
    model(batch_for(branch)).loss.backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.partition(".")[0] for name in with_gradient} == {f"{branch}_branch"}


SWITCHES: list[dict[str, Any]] = [
    {},
    {"frozen_llama_proj": True},
    {"frozen_video_Qformer": True},
    {"freeze_qformer": False},
    {"freeze_vit": False},
]


@pytest.mark.parametrize("switches", SWITCHES)
def test_one_list_drives_names_gradients_and_modes(switches: dict[str, Any]) -> None:
    model = build_golden("video", **switches).train()
    prefixes = trainable_prefixes(model.settings)
    names = {name for name, _ in model.trainable_parameters()}
    assert names == {
        name for name in map(original_name, _parameter_names(model)) if name.startswith(prefixes)
    }
    model(captions()).loss.backward()
    assert names == {original_name(n) for n, p in model.named_parameters() if p.grad is not None}
    for module in model.modules():
        own = list(module.parameters())
        if own and not list(module.children()):
            assert module.training == any(parameter.requires_grad for parameter in own)


def _parameter_names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def test_dropout_acts_in_the_trained_branch_alone() -> None:
    video, sound = noise(VIDEO), noise(SOUND)
    for branch in BRANCHES:
        model = build_golden(branch).train()
        frames = [model.encode_frames(video) for _ in range(2)]
        segments = [model.encode_segments(sound, "audio") for _ in range(2)]
        assert torch.equal(*frames)
        assert torch.equal(*segments)
        tokens = {
            "video": [model.temporal_video(frames[0]) for _ in range(2)],
            "audio": [model.temporal_audio(segments[0]) for _ in range(2)],
        }
        assert {name: torch.equal(*pair) for name, pair in tokens.items()} == {
            "video": branch == "audio",
            "audio": branch == "video",
        }


def test_shapes_of_the_branches() -> None:
    model = golden_model()
    assert model.encode_video(noise(VIDEO)).shape == (2, 6, 64)
    assert model.encode_video(noise((1, 3, 1, 56, 56))).shape == (1, 6, 64)
    assert model.encode_frames(noise(VIDEO)).shape == (2, 4, 6, 48)
    assert model.encode_audio(noise(SOUND)).shape == (2, 3, 64)
    assert model.encode_audio(noise((1, 2, 3, 224, 224)), "vision").shape == (1, 3, 64)


def test_an_item_does_not_depend_on_the_rest_of_its_batch() -> None:
    model, video, sound = golden_model(), noise(VIDEO), noise(SOUND)
    alone, together = model.encode_video(video[1:]), model.encode_video(video)[1:]
    assert torch.allclose(alone, together, atol=1e-5)
    alone, together = model.encode_audio(sound[1:]), model.encode_audio(sound)[1:]
    assert torch.allclose(alone, together, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 4, 56, 56), (2, 3, 56, 56), (1, 2, 3, 4, 56, 56)])
def test_wrong_dimensions_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"video \(B, 3, T, H, W\) expected, shape") as error:
        golden_model().encode_video(torch.zeros(shape))
    assert str(shape) in str(error.value)
    with pytest.raises(ValueError, match=r"audio \(B, S, 1, mel, frames\)"):
        golden_model().encode_audio(torch.zeros(shape))


def test_a_model_without_audio_branch_says_so() -> None:
    model = build_golden("video", equip_audio_branch=False)
    for call in (
        lambda: model.encode_audio(noise(SOUND)),
        lambda: model.temporal_audio(noise(SOUND)),
    ):
        with pytest.raises(
            ConfigError, match=r"no audio branch; set model\.equip_audio_branch=true"
        ):
            call()


@pytest.mark.parametrize("branch", BRANCHES)
def test_a_picture_is_a_clip_of_one_frame(branch: Branch) -> None:
    side = 56 if branch == "video" else 224
    pictures = noise((2, 3, side, side))
    loss = golden_model(branch)(CaptionBatch(pixel_values=pictures, captions=["a", "b"])).loss
    clips = CaptionBatch(pixel_values=pictures[:, :, None], captions=["a", "b"])
    assert torch.equal(loss, golden_model(branch)(clips).loss)


@pytest.mark.parametrize("branch", [*BRANCHES, None])
def test_real_sound_takes_the_audio_branch(branch: Branch | None) -> None:
    batch = CaptionBatch(audio_values=noise(SOUND), captions=["a bell", "rain"])
    output = golden_model(branch)(batch)
    assert output.loss.isfinite()
    assert output.num_tokens > 0


def test_a_batch_without_media_is_refused() -> None:
    with pytest.raises(ValueError, match="pixel_values or audio_values"):
        golden_model()(CaptionBatch(captions=["a"]))


def instructions(num_placeholders: int, label: int) -> InstructionBatch:
    media_id = golden_model().media_token_id
    ids = torch.tensor([[1, *[media_id] * num_placeholders, 20, 21, 2]])
    return InstructionBatch(
        pixel_values=noise((1, 3, 2, 56, 56)),
        input_ids=ids,
        attention_mask=torch.ones_like(ids).bool(),
        labels=torch.full_like(ids, label),
    )


def test_placeholders_of_another_count_are_refused() -> None:
    with pytest.raises(ValueError, match=r"row 0 has 5 <ImageHere> but its media have 6 tokens"):
        golden_model()(instructions(5, 20))


def test_a_batch_without_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="no position of the batch has a label"):
        golden_model()(instructions(6, -100))


def test_the_mask_decides_what_padding_is_and_not_the_id() -> None:
    batch = instructions(6, 20)
    padded = InstructionBatch(
        pixel_values=batch.pixel_values,
        input_ids=nn.functional.pad(batch.input_ids, (0, 3), value=7),
        attention_mask=nn.functional.pad(batch.attention_mask, (0, 3)),
        labels=nn.functional.pad(batch.labels, (0, 3), value=-100),
    )
    model = golden_model()
    assert torch.allclose(model(padded).loss, model(batch).loss, atol=1e-6)


def test_left_padding_changes_positions_but_is_not_attended_to() -> None:
    batch, losses = instructions(6, 20), []
    for value in (7, 8):
        padded = InstructionBatch(
            pixel_values=batch.pixel_values,
            input_ids=nn.functional.pad(batch.input_ids, (3, 0), value=value),
            attention_mask=nn.functional.pad(batch.attention_mask, (3, 0)),
            labels=nn.functional.pad(batch.labels, (3, 0), value=-100),
        )
        padded.labels[:, 3] = -100  # predicted from padding
        losses.append(golden_model()(padded).loss)
    assert torch.allclose(*losses, atol=1e-6)


def test_embed_without_media_is_plain_text() -> None:
    model, ids = golden_model(), torch.tensor([[1, 20, 21]])
    table = model.language_model.get_input_embeddings().weight
    assert torch.equal(model.embed(ids, None), table[ids])


MEDIA_ID = 9
IDS = torch.tensor([[1, MEDIA_ID, MEDIA_ID, 4], [MEDIA_ID, 5, 6, MEDIA_ID]])


def test_media_replace_their_placeholders_in_order() -> None:
    text, media = torch.zeros(2, 4, 3), torch.arange(1.0, 13.0).view(2, 2, 3)
    result = splice(text, IDS, media, MEDIA_ID)
    assert torch.equal(result[0, 1:3], media[0])
    assert torch.equal(result[1, [0, 3]], media[1])
    assert result[0, [0, 3]].abs().max() == result[1, 1:3].abs().max() == 0
    assert text.abs().max() == 0


def test_gradients_reach_the_media() -> None:
    media = torch.ones(2, 2, 3, requires_grad=True)
    splice(torch.zeros(2, 4, 3), IDS, media, MEDIA_ID).sum().backward()
    assert media.grad is not None
    assert torch.equal(media.grad, torch.ones(2, 2, 3))


def test_media_take_the_precision_of_the_text() -> None:
    text = torch.zeros(2, 4, 3, dtype=torch.bfloat16)
    assert splice(text, IDS, torch.ones(2, 2, 3), MEDIA_ID).dtype is torch.bfloat16


@pytest.mark.parametrize("num_tokens", [1, 3])
def test_counts_that_differ_are_named(num_tokens: int) -> None:
    with pytest.raises(ValueError, match=r"row 0 has 2 <ImageHere>.*have") as error:
        splice(torch.zeros(2, 4, 3), IDS, torch.ones(2, num_tokens, 3), MEDIA_ID)
    assert f"{num_tokens} tokens" in str(error.value)
    assert "num_video_query_token" in str(error.value)


def test_the_row_that_differs_is_named() -> None:
    ids = IDS.clone()
    ids[1, 0] = 0
    with pytest.raises(ValueError, match="row 1 has 1 <ImageHere> but its media have 2 tokens"):
        splice(torch.zeros(2, 4, 3), ids, torch.ones(2, 2, 3), MEDIA_ID)
