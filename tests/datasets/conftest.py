"""The data sets that the tests of this folder share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data_sets import write_all


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Media and annotations of every family; not to be changed."""
    return write_all(tmp_path_factory.mktemp("data") / "all")
