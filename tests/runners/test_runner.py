from __future__ import annotations

from collections.abc import Iterator

import torch

from video_llama.runners.runner import on_device
from video_llama.types import CaptionBatch, ConfigError, plain_message


def test_batches_are_read_when_they_are_needed_and_not_before() -> None:
    read = []

    def batches() -> Iterator[CaptionBatch]:
        for number in range(3):
            read.append(number)
            yield CaptionBatch(captions=[str(number)], pixel_values=torch.ones(1, 3, 2, 2))

    moved = on_device(batches(), torch.device("cpu"))
    assert read == []
    assert next(moved).captions == ["0"]
    assert read == [0]
    assert [batch.captions[0] for batch in moved] == ["1", "2"]


def test_message_of_a_loading_process_has_no_traceback() -> None:
    text = "Caught ConfigError in DataLoader worker process 0.\nOriginal Traceback ...\n"
    error = ConfigError(f"{text}video_llama.types.ConfigError: too long\n")
    assert plain_message(error) == "too long"
    assert plain_message(ConfigError("too long")) == "too long"
