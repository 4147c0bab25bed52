from __future__ import annotations

from pathlib import Path

import pytest

from tests.runners.fake_run import fake_run


@pytest.mark.parametrize(
    ("before", "now", "every", "due"),
    [(0, 1, 2, False), (1, 2, 2, True), (2, 3, 2, False), (2, 6, 5, True), (5, 9, 5, False)],
)
def test_what_is_due_between_updates_happens_at_the_next(
    before: int, now: int, every: int, due: bool, tmp_path: Path
) -> None:
    run = fake_run(tmp_path, previous_step=before, step=now)
    assert run.is_due(every) is due
    assert run.is_due(0) is False
