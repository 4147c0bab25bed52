"""torchvision, torchaudio, timm and transformers can be imported beside every build of torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.reference import ROOT

BROKEN = b"not a library"


def python(code: str, *, first_on_path: Path = ROOT) -> str:
    """Run code in a new interpreter, with `first_on_path` before the installed packages."""
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(first_on_path)!r})\n{code}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.strip()


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Empty packages named torchvision and torchaudio, without native libraries as yet."""
    for folder in ("torchvision", "torchaudio/lib"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("torchvision", "torchaudio"):
        (tmp_path / name / "__init__.py").touch()
    return tmp_path


def place(packages: Path, *, torchvision: bytes | Path, torchaudio: bytes | Path) -> None:
    """Put native libraries in place: the bytes of a file, or another library to stand for it."""
    wanted = {"torchvision/_C.so": torchvision, "torchaudio/lib/_torchaudio.so": torchaudio}
    for name, content in wanted.items():
        if isinstance(content, bytes):
            (packages / name).write_bytes(content)
        else:
            (packages / name).symlink_to(content)


@pytest.fixture
def loadable() -> Path:
    """A native library that this machine can load."""
    libraries = sorted((Path(torch.__file__).parent / "lib").glob("libtorch.*"))
    return libraries[0]


def test_what_the_project_uses_imports_and_needs_nothing_native() -> None:
    code = """
import video_llama.common.compat
import timm, torch, torchaudio, torchvision
from torchaudio.compliance.kaldi import fbank
from torchaudio.functional import resample
from transformers import Blip2QFormerModel, LlamaForCausalLM
sound = resample(torch.randn(1, 8000), 8000, 16000)
print(tuple(sound.shape), tuple(fbank(sound, num_mel_bins=128).shape))
"""
    assert python(code) == "(1, 16000) (98, 128)"


def test_nothing_happens_where_the_native_libraries_load(packages: Path, loadable: Path) -> None:
    place(packages, torchvision=loadable, torchaudio=loadable)
    code = """
import torch, video_llama.common.compat
print(video_llama.common.compat.apply(), hasattr(torch.ops.torchvision, "nms"),
      "torchaudio._extension" in sys.modules)
"""
    assert python(code, first_on_path=packages) == "() False False"


def test_stand_ins_are_placed_where_the_libraries_do_not_load(packages: Path) -> None:
    place(packages, torchvision=BROKEN, torchaudio=BROKEN)
    code = """
import torch, video_llama.common.compat
import torchaudio
from torchaudio import _extension
print(video_llama.common.compat.apply(), hasattr(torch.ops.torchvision, "nms"),
      hasattr(torch.ops.torchvision, "qnms"), _extension._IS_TORCHAUDIO_EXT_AVAILABLE)
"""
    expected = "('torchvision', 'torchaudio') True True False"
    assert python(code, first_on_path=packages) == expected


def test_torchvision_without_any_native_library_gets_its_stand_in(packages: Path) -> None:
    # torchaudio is made to be built without one; torchvision is not.
    code = "import video_llama.common.compat; print(video_llama.common.compat.apply())"
    assert python(code, first_on_path=packages) == "('torchvision',)"


def test_each_package_is_judged_alone(packages: Path, loadable: Path) -> None:
    place(packages, torchvision=loadable, torchaudio=BROKEN)
    code = "import video_llama.common.compat; print(video_llama.common.compat.apply())"
    assert python(code, first_on_path=packages) == "('torchaudio',)"


@pytest.mark.parametrize(("of_torch", "expected"), [("13.0", "()"), ("12.9", "('torchaudio',)")])
def test_torchaudio_for_another_cuda_counts_as_not_loading(
    packages: Path, loadable: Path, of_torch: str, expected: str
) -> None:
    # `import torchaudio` itself refuses a torch built for another CUDA release.
    place(packages, torchvision=loadable, torchaudio=loadable)
    code = f"""
import torch
torch.version.cuda = {of_torch!r}
library = torch.library.Library("_torchaudio", "FRAGMENT")
library.define("cuda_version() -> int?")
library.impl("cuda_version", lambda: 13000, "CompositeExplicitAutograd")
import video_llama.common.compat
print(video_llama.common.compat.apply())
"""
    assert python(code, first_on_path=packages) == expected


def test_calling_what_is_missing_says_why() -> None:
    from video_llama.common import compat

    def forced_align() -> None: ...

    with pytest.raises(RuntimeError, match=r"torchaudio\.forced_align needs .* native library"):
        compat._unavailable(forced_align)()


def test_applying_twice_changes_nothing() -> None:
    from video_llama.common import compat

    before = list(compat._KEPT_ALIVE)
    assert compat.apply() is compat.apply()
    assert before == compat._KEPT_ALIVE
