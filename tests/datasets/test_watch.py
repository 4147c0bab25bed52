from __future__ import annotations

import pytest

from video_llama.datasets.batches import ItemError, WorkerStatus
from video_llama.types import ConfigError, MediaError


def test_the_board_shows_what_is_being_done_and_nothing_else() -> None:
    status = WorkerStatus()
    assert status.busy() == []
    with status.working_on(2, 10**12, "item"):
        ((worker, number, index, seconds),) = status.busy()
        assert (worker, number, index) == (0, 2, 10**12)
        assert 0 <= seconds < 60
    assert status.busy() == []


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (MediaError("a.mp4", "broken"), MediaError, "^a.mp4: broken$"),
        (ConfigError("too long"), ConfigError, "^set, item 3: too long$"),
        (ZeroDivisionError("oh"), ItemError, "^set, item 3: ZeroDivisionError: oh$"),
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
    ],
)
def test_errors_get_the_name_of_the_item_unless_they_have_it(
    error: BaseException, expected: type[BaseException], message: str
) -> None:
    status = WorkerStatus()
    with pytest.raises(expected, match=message), status.working_on(0, 3, "set, item 3"):
        raise error
    assert status.busy() == []
