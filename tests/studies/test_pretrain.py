"""Pre-training of the frozen parts: what their data say, and that a part learns and loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from studies.pretrain.contrast import TextTower, contrastive_loss, random_batch
from studies.pretrain.imagebind import varied
from studies.pretrain.language import softened
from studies.pretrain.loop import FitSettings, fit, orthogonal, save_half
from studies.pretrain.media import SLOTS, Pictures, draw_pictures, play_sounds
from studies.pretrain.texts import CONVERSATIONS, ConversationForm, TextWorld
from video_llama.common.io import package_file
from video_llama.synthetic.scene import COLOURS, KINDS
from video_llama.synthetic.splits import generator, split_of
from video_llama.text.tokenizer import load_tokenizer
from video_llama.types import IGNORE_INDEX, IMAGE_PLACEHOLDER


@pytest.fixture(scope="module")
def world() -> TextWorld:
    return TextWorld(load_tokenizer(package_file("presets/tiny/llama")))


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return draw_pictures(0, "train", 40, size=56)


def decoded(world: TextWorld, ids: list[int]) -> str:
    text: str = world._tokenizer.decode(ids)
    return text


@pytest.mark.parametrize("form", CONVERSATIONS)
def test_descriptions_stand_where_media_would(world: TextWorld, form: str) -> None:
    rng = generator(0, "test")
    text = world.conversation(rng, form)
    assert text is not None
    assert IMAGE_PLACEHOLDER not in decoded(world, text.input_ids)
    assert len(text.input_ids) == len(text.labels)
    if form in ("video", "image"):
        name = form.capitalize()
        between = decoded(world, text.input_ids).partition(f"<{name}>")[2].partition("</")[0]
        assert between.strip()


def test_without_its_description_a_text_does_not_tell_the_answer(world: TextWorld) -> None:
    for number in range(20):
        rng = generator(number, "test")
        text = world.conversation(rng, "video", only="colour", withheld=True)
        if text is not None:
            asked = [
                i
                for i, label in zip(text.input_ids, text.labels, strict=True)
                if label == IGNORE_INDEX
            ]
            assert not any(colour in decoded(world, asked) for colour in COLOURS)


def test_one_conversation_has_no_two_questions_of_which_one_gives_the_other_away(
    world: TextWorld,
) -> None:
    rng = generator(0, "test")
    texts = [world.conversation(rng, "video") for _ in range(60)]
    assert all(not {"kind", "see"} <= set(text.kinds) for text in texts if text)


def test_a_plain_text_has_loss_on_its_answers_alone(world: TextWorld) -> None:
    text = next(filter(None, (world.plain(generator(seed, "test")) for seed in range(9))))
    learnt = [i for i, label in zip(text.input_ids, text.labels, strict=True) if label >= 0]
    assert learnt == [label for label in text.labels if label >= 0]
    assert "?" not in decoded(world, learnt)
    assert "<Video>" in decoded(world, text.input_ids) or "<Audio>" in decoded(
        world, text.input_ids
    )


@pytest.mark.parametrize("form", CONVERSATIONS)
def test_every_description_is_known_by_its_tokens(world: TextWorld, form: ConversationForm) -> None:
    text = world.conversation(generator(0, "test"), form)
    assert text is not None
    described = [n for n in text.media if n]
    assert sorted(set(described)) == ([1, 2] if form == "both" else [1])
    assert described == sorted(described)
    assert all(label < 0 for label, n in zip(text.labels, text.media, strict=True) if n)


def test_descriptions_are_softened_each_in_its_own_way_and_words_left() -> None:
    random = torch.Generator().manual_seed(0)
    embedded = torch.randn(3, 12, 64, generator=random)
    media = torch.tensor([0, 0, 1, 1, 1, 1, 0, 2, 2, 2, 2, 0]).expand(3, -1)
    soft = softened(embedded, media, random)
    assert torch.equal(soft[media == 0], embedded[media == 0])
    lengths = soft.norm(dim=-1) / embedded.norm(dim=-1)
    first, second = lengths[:, 2:6].mean(dim=1), lengths[:, 7:11].mean(dim=1)
    assert len(set(torch.cat([first, second]).round(decimals=2).tolist())) == 6
    assert lengths[media > 0].min() > 0.3
    assert lengths[media > 0].max() < 15
    alike = torch.cosine_similarity(soft, embedded, dim=-1)[media > 0]
    assert alike.min() > 0.2
    assert alike.max() < 0.999


def test_spectrograms_vary_in_pitch_and_tempo_and_keep_their_values() -> None:
    random = torch.Generator().manual_seed(0)
    rising = (torch.arange(128.0)[:, None] + 1000 * torch.arange(204.0)).expand(4, 1, -1, -1)
    changed = varied(rising, random)
    assert changed.shape == rising.shape
    shifts = (changed[:, 0, 64, 0] - 64).tolist()
    assert len(set(shifts)) > 1
    assert max(map(abs, shifts)) <= 5
    ends = (changed[:, 0, 64, 100] / 1000).floor()
    assert 80 <= ends.min() < ends.max() <= 120


def test_pictures_are_of_the_split(pictures: Pictures) -> None:
    shown = pictures.words[pictures.words[:, 0] > 0]
    assert 0 < len(shown) < len(pictures.words)
    pairs = {(KINDS[kind - 1], COLOURS[colour - 1]) for kind, colour in shown[:, :2].tolist()}
    assert all(split_of(*pair, "still") != "test_pairs" for pair in pairs)
    assert pictures.normalised(torch.arange(4)).shape == (4, 3, 56, 56)


def test_a_discoloured_batch_does_not_say_the_colour(pictures: Pictures) -> None:
    random = torch.Generator().manual_seed(0)
    colour = list(SLOTS).index("colour")
    for _ in range(8):
        pixels, words, slots = random_batch(pictures, 8, random, list(SLOTS))
        plain = (pixels[:, None] - pictures.normalised(torch.arange(40))).abs().flatten(2).sum(-1)
        unchanged = bool((plain.min(dim=1).values == 0).all())
        assert unchanged == (colour in slots)
        assert words.shape == (8, len(SLOTS))


def test_towers_meet_where_they_are_trained(pictures: Pictures) -> None:
    torch.manual_seed(0)
    text, vectors = TextTower(8), torch.nn.Parameter(torch.randn(40, 8))

    def loss_at(step: int) -> torch.Tensor:
        unit = torch.nn.functional.normalize(vectors, dim=-1)
        return contrastive_loss(unit, pictures.words, text, [0, 1])

    model = torch.nn.ModuleDict({"text": text})
    model.register_parameter("vectors", vectors)
    settings = FitSettings(steps=100, other_learning_rate=0.05, warmup=5)
    log = fit(model, loss_at, settings, title="test")
    assert log["loss"][-1] < 0.5 * log["loss"][0]


def test_sounds_come_with_what_is_heard_in_their_middle() -> None:
    sounds = play_sounds(0, "train", 6)
    assert sounds.spectrograms.shape == (6, 1, 128, 204)
    assert set(sounds.kinds.tolist()) <= set(range(len(KINDS) + 1))


def test_weights_are_kept_in_half_precision(tmp_path: Path) -> None:
    save_half(tmp_path / "a" / "part.safetensors", {"x": torch.randn(2, 2).T})
    assert load_file(tmp_path / "a" / "part.safetensors")["x"].dtype == torch.float16


def test_orthogonal_keeps_directions_and_evens_out_their_lengths() -> None:
    torch.manual_seed(0)
    for shape in ((6, 20), (20, 6)):
        matrix = torch.randn(shape) @ torch.diag(torch.logspace(-1, 1, shape[1]))
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        even = torch.diagonal(left.T @ orthogonal(matrix) @ right.T)
        assert even.min() > 0.5
        assert even.max() < 1.3
