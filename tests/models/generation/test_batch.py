"""Answers of a batch are those of each prompt alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden_model import golden_model
from video_llama.models.generation.decoding import GenerationSettings
from video_llama.models.generation.generate import generate, generate_batch


def prompts() -> list[Tensor]:
    """Prompts of unequal lengths, the longest not the first."""
    table = golden_model().language_model.model.embed_tokens.weight.detach()
    random = torch.Generator().manual_seed(0)
    lengths = (5, 40, 1, 17, 17)
    return [table[torch.randint(3, len(table), (n,), generator=random)] for n in lengths]


def settings(**options: Any) -> GenerationSettings:
    return GenerationSettings(**{"temperature": 0.0, "max_new_tokens": 12, **options})


CHOICES = [
    settings(),
    settings(max_new_tokens=3),
    settings(temperature=1.3, top_p=0.95, seed=4, min_new_tokens=8),
    settings(repetition_penalty=3),
    settings(temperature=0.7, seed=1, max_new_tokens=20),
]


@pytest.mark.parametrize("stop_ids", [[[2]], [[2], [7], [100, 9]]])
def test_each_row_answers_as_if_alone(stop_ids: list[list[int]]) -> None:
    model = golden_model().language_model
    rows = prompts()
    alone = [
        list(generate(model, row[None], chosen, stop_ids))
        for row, chosen in zip(rows, CHOICES, strict=True)
    ]
    assert generate_batch(model, rows, CHOICES, stop_ids) == alone
    assert len({len(ids) for ids in alone}) > 2  # rows leave the batch one after the other


def test_a_row_ends_when_its_listener_says_so() -> None:
    model = golden_model().language_model
    heard: dict[int, list[int]] = {row: [] for row in range(5)}

    def ended(row: int, token: int) -> bool:
        heard[row].append(token)
        return len(heard[row]) == row + 1

    ids = generate_batch(model, prompts(), [settings(min_new_tokens=12)] * 5, [[2]], ended)
    assert [len(row) for row in ids] == [1, 2, 3, 4, 5]
    assert ids == list(heard.values())


def test_beams_are_refused() -> None:
    with pytest.raises(ValueError, match="no beams"):
        generate_batch(golden_model().language_model, prompts(), [settings(num_beams=2)] * 5, [[2]])
