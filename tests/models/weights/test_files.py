"""Opening weight files: every format that is read, and a clear error for what is no weight file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from video_llama.models.weights.files import open_weights
from video_llama.types import WeightsError

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}


def check(path: Path) -> None:
    file = open_weights(path)
    assert dict(file.shapes) == {"a.weight": (2, 3), "a.bias": (2,)}
    assert torch.equal(file.tensor("a.weight"), STATE["a.weight"])


@pytest.mark.parametrize("suffix", ["pth", "pt", "bin"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_old_and_new_are_read(suffix: str, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / f"weights.{suffix}"
    torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
    check(path)


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "weights.safetensors", {"kind": "test"})
    check(tmp_path / "weights.safetensors")
    assert open_weights(tmp_path / "weights.safetensors").metadata == {"kind": "test"}


@pytest.mark.parametrize("entry", ["model", "state_dict"])
def test_the_weights_of_a_training_checkpoint_are_taken(entry: str, tmp_path: Path) -> None:
    content = {entry: STATE, "epoch": 3, "config": {"a": 1}, "rng": torch.zeros(4)}
    torch.save(content, tmp_path / "weights.pth")
    check(tmp_path / "weights.pth")
    assert open_weights(tmp_path / "weights.pth").extras == {"epoch": 3, "config": {"a": 1}}


def test_the_prefix_of_data_parallel_training_is_dropped(tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in STATE.items()}
    torch.save({"model": state}, tmp_path / "weights.pth")
    check(tmp_path / "weights.pth")


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_tensors_are_read_from_the_mapped_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"big": torch.zeros(1 << 20)}, path)
    file = open_weights(path)
    assert file.shapes["big"] == (1 << 20,)
    assert str(path) in Path("/proc/self/maps").read_text("utf-8")


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "lfs.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
    "page.pth": (b"\n<!DOCTYPE html><html>Sign in</html>", "web page"),
    "empty.pth": (b"", "empty"),
    "text.pth": (b"hello, this is no weight file at all", "cannot be read|not a plain weight file"),
    "text.safetensors": (b"hello, this is no weight file at all", "safetensors"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_what_is_no_weight_file_is_named(name: str, tmp_path: Path) -> None:
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=message) as error:
        open_weights(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("part", [0.3, 0.9, 0.999])
def test_truncated_files_are_refused(suffix: str, part: float, tmp_path: Path) -> None:
    path = tmp_path / f"weights.{suffix}"
    state = {"a": torch.rand(5000), "b": torch.rand(5000)}
    if suffix == "pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    os.truncate(path, int(path.stat().st_size * part))
    with pytest.raises(WeightsError, match=r"truncated|not a complete"):
        open_weights(path)


def test_a_truncated_old_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.rand(5000)}, path, _use_new_zipfile_serialization=False)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(WeightsError, match=r"weights\.pth"):
        open_weights(path)


class Attack:
    """Unpickling it runs a shell command."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_and_does_not_run(zipped: bool, tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "weights.pth"
    content = {"model": STATE, "config": Attack(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="a pickle can run any code"):
        open_weights(path)
    assert not trace.exists()


@pytest.mark.parametrize("content", [{"epoch": 1}, {"model": {"note": "x"}}, {"model": {}}])
def test_a_file_without_tensors_is_refused(content: dict[str, object], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match="holds no tensors; its entries are"):
        open_weights(tmp_path / "weights.pth")


def test_a_bare_tensor_is_refused(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match="holds a Tensor, a state dict is needed"):
        open_weights(tmp_path / "weights.pth")


GARBAGE = [
    *(b".", b"junk", b"\x80\x09.", b"\x80\x02}.", b"PK\x03\x04", b"\x80\x02\x8b\xff\xff\xff\xff"),
    *(b"\x80\x02ccollections\nOrderedDict\n(K\x01K\x02tR.", b"\x80\x02h\x05.", b"e" * 50),
    *(b"\x80\x02X\x02\x00\x00\x00\xff\xff.", b"\x80\x02K\x01b."),
]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", GARBAGE)
def test_garbage_is_no_torch_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=r"cannot be read as a torch file \(\w+ \w+ ") as error:
        open_weights(tmp_path / "weights.pth")
    assert "weights_only" not in str(error.value)


def test_an_unsafe_object_is_named_without_torchs_advice(tmp_path: Path) -> None:
    torch.save({"model": STATE, "config": Attack(tmp_path)}, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=r"it holds posix\.system") as error:
        open_weights(tmp_path / "weights.pth")
    assert "weights_only" not in str(error.value)


ODD_TENSORS = {
    "sparse": lambda: torch.eye(2).to_sparse(),
    "csr": lambda: torch.eye(2).to_sparse_csr(),
    "meta": lambda: torch.ones(2, device="meta"),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ODD_TENSORS)
def test_tensors_that_are_not_plain_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    torch.save({"fine": torch.ones(1), "a.odd": ODD_TENSORS[kind]()}, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=r"a\.odd is a sparse, quantised, nested or meta tensor"):
        open_weights(tmp_path / "weights.pth")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_types_that_are_no_weights_are_noted(suffix: str, tmp_path: Path) -> None:
    kinds = (torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float16)
    state = {str(kind): torch.zeros(2).to(kind) for kind in (*kinds, torch.float64)}
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    assert open_weights(path).unfit.keys() == {str(kind) for kind in kinds[:4]}


def test_a_tensor_of_one_repeated_number_is_not_read(tmp_path: Path) -> None:
    torch.save({"a.huge": torch.ones(1).expand(2**40)}, tmp_path / "weights.pth")
    file = open_weights(tmp_path / "weights.pth")
    assert file.shapes == {"a.huge": (2**40,)}
    with pytest.raises(WeightsError, match=r"a\.huge has shape .* its numbers are not stored"):
        file.tensor("a.huge")
