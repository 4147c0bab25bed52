"""Every number that the original system computed with the tiny model, against ours."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.golden_model import (
    SAMPLES,
    TOKENIZER,
    Golden,
    case_of,
    golden,
    read_condensed,
    read_reference,
)
from tests.models.golden_runs import (
    Outputs,
    caption_batch,
    chat_outputs,
    encode_audio_outputs,
    encode_video_outputs,
    forward_outputs,
    instruction_batch,
    prompt_wrap_outputs,
    train_trace_outputs,
)
from tests.reference import SHARED, needs_shared

RUNS: dict[str, Callable[[str], Outputs]] = {
    "encode_video": encode_video_outputs,
    "encode_audio": encode_audio_outputs,
    "prompt_wrap": prompt_wrap_outputs,
    "forward_caption": lambda case: forward_outputs(case, caption_batch(case)),
    "forward_multi": lambda case: forward_outputs(case, instruction_batch(case)),
    "chat": chat_outputs,
    "train_trace": train_trace_outputs,
}
"""What computes the outputs of a case, by the first part of the case's name."""

EXEMPT = {
    "encode_audiovideo": "the original never calls it; it is not part of this project",
    "forward_caption/vl_video5/truncated5": "our truncated captions keep their end symbol",
}
"""Cases that are not compared, and why."""

CASES = sorted({case_of(name) for name in golden().arrays} - EXEMPT.keys())
NUM_CASES = 34
NUM_ARRAYS = 340
"""Compared arrays, gradient-norm tables included: a lone clone compares just as many."""


@pytest.mark.parametrize("case", CASES)
def test_outputs_equal_those_of_the_original(case: str) -> None:
    expected = golden().case(case)
    computed = RUNS[case.partition("/")[0]](case)
    assert computed.keys() == expected.keys()
    differences = {name: expected[name].difference(computed[name]) for name in expected}
    assert {
        name: difference
        for name, difference in differences.items()
        if difference > tolerance(case, name, expected[name].largest)
    } == {}


def tolerance(case: str, name: str, largest: float) -> float:
    if case.startswith("train_trace"):
        return {"losses": 1e-5, "lrs": 0.0}.get(name, 1e-6)
    if name.endswith(("_ids", "labels", "mask")):
        return 0.0
    if name.startswith("grad"):
        return 1e-6 if largest < 1e-5 else 1e-5
    return 1e-4


def test_no_array_is_left_out() -> None:
    assert len(CASES) == NUM_CASES
    assert sum(len(golden().case(case)) for case in CASES) == NUM_ARRAYS
    assert EXEMPT.keys() < {case_of(name) for name in golden().arrays}


@needs_shared
def test_condensed_numbers_are_those_of_the_reference() -> None:
    whole, condensed = read_reference(), read_condensed()
    assert contents(condensed) == contents(whole)
    for name, array in whole.arrays.items():
        sampled = array.sampled()
        assert condensed.arrays[name].shape == array.shape
        assert (condensed.arrays[name].values == sampled.values).all(), name
    assert TOKENIZER.read_bytes() == (SHARED / "tokenizers/tiny/tokenizer.model").read_bytes()
    assert SAMPLES.stat().st_size < 350_000


def contents(numbers: Golden) -> list[object]:
    inputs = {name: list(entry) for name, entry in numbers.inputs.items()}
    return [numbers.config, numbers.parameters, inputs, numbers.texts, [*numbers.arrays]]


def test_a_sample_finds_a_wrong_value() -> None:
    array = golden().arrays["encode_video/image1/vit_out"]
    near = torch.zeros(array.shape)
    near.view(-1)[torch.from_numpy(array.places)] = torch.from_numpy(array.values)
    assert array.difference(near) == 0
    assert array.difference(near + 1e-3) > 1e-4
    with pytest.raises(AssertionError, match="not"):
        array.difference(near[:1])
