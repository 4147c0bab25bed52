"""What others wrote must not steer the terminal."""

from __future__ import annotations

from video_llama.common.io import one_line, shown, without_controls


def test_names_and_messages_show_what_cannot_be_printed() -> None:
    assert shown("caf\xe9 \u72d7.mp4") == "caf\xe9 \u72d7.mp4"
    assert shown("a\x1b[31m\u202e\r\n.mp4") == "a\\x1b[31m\\u202e\\r\\n.mp4"
    assert shown("a\nb\x07", keep="\n") == "a\nb\\x07"
    assert one_line(FileNotFoundError(2, "No", "a\x1b]0;x\x07")) == "a\\x1b]0;x\\x07: no"


def test_answers_keep_their_lines_and_lose_control_characters() -> None:
    assert without_controls("a\n\tb\r\x1b[2J\x9b\x7f \u3000\u200d") == "a\n\tb[2J \u3000\u200d"
