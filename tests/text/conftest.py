from __future__ import annotations

from pathlib import Path

import pytest
from transformers import LlamaTokenizer

from tests.reference import SHARED
from tests.text.tokenizers import FOLDERS
from video_llama.text.tokenizer import load_tokenizer


@pytest.fixture(scope="module", params=list(FOLDERS))
def folder(request: pytest.FixtureRequest) -> Path:
    path: Path = FOLDERS[request.param]
    if not path.is_dir():
        pytest.skip(f"the reference folder is not at {SHARED}")
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> LlamaTokenizer:
    return load_tokenizer(folder)
