from __future__ import annotations

import pytest

from video_llama.runners.task import TASKS, is_exact_match, normalised


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("  A red\n square. ", "a red square"),
        ("It's here -- really!", "it s here really"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("红色、方块。", "红色 方块"),
        ("$5 + 3", "5 3"),
        ("...", ""),
    ],
)
def test_case_space_and_punctuation_do_not_count(text: str, plain: str) -> None:
    assert normalised(text) == plain


def test_other_words_are_no_match() -> None:
    assert is_exact_match("A dog.", "a  dog")
    assert not is_exact_match("a dog", "a dogs")
    assert not is_exact_match("a red dog", "a dog")


def test_tasks_keep_the_originals_names() -> None:
    assert list(TASKS) == ["image_text_pretrain", "video_text_pretrain"]
