from __future__ import annotations

from video_llama.types import ConfigError, plain_message


def test_message_of_a_loading_process_has_no_traceback() -> None:
    text = "Caught ConfigError in DataLoader worker process 0.\nOriginal Traceback ...\n"
    error = ConfigError(f"{text}video_llama.types.ConfigError: too long\n")
    assert plain_message(error) == "too long"
    assert plain_message(ConfigError("too long")) == "too long"
