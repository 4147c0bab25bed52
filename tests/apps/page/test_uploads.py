"""Only what was uploaded is read, and not what is too large or too long."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import ANY

import pytest

from tests.media import tone, write_audio, write_picture
from video_llama.apps.page.options import ServerOptions
from video_llama.apps.page.uploads import Uploads
from video_llama.types import MediaError, RequestError

HASH = "0123456789abcdef" * 4


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    folder = tmp_path / "uploads"
    (folder / HASH).mkdir(parents=True)
    return Uploads(folder, ServerOptions(max_file_mb=0.1, max_minutes=0.05))


def test_an_uploaded_file_may_be_read(uploads: Uploads) -> None:
    picture = write_picture(uploads.folder / HASH / "a picture.png")
    assert uploads.checked(str(picture)) == picture


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "{folder}/../secret.png",
        "{folder}/" + HASH + "/../../secret.png",
        "{folder}/link.png",
        "{folder}/loop",
        "{folder}",
        "secret.png",
        "../secret.png",
        "http://127.0.0.1/a.png",
        "file:///etc/passwd",
        "",
        "\x00",
        "{folder}/\x00.png",
        "/" + "a" * 5000,
        "~/secret.png",
        "{folder}2/secret.png",
        "/proc/self/environ",
        "/dev/stdin",
    ],
)
def test_other_files_are_refused_whatever_their_path(uploads: Uploads, path: str) -> None:
    write_picture(uploads.folder.parent / "secret.png")
    beside = uploads.folder.with_name("uploads2")
    beside.mkdir()
    write_picture(beside / "secret.png")
    (uploads.folder / "link.png").symlink_to(uploads.folder.parent / "secret.png")
    (uploads.folder / "loop").symlink_to(uploads.folder / "loop")
    with pytest.raises(MediaError) as refused:
        uploads.checked(path.format(folder=uploads.folder))
    assert "secret.png: it holds" not in str(refused.value)


def test_a_large_file_names_both_sizes(uploads: Uploads) -> None:
    path = write_audio(uploads.folder / "large.wav", tone(4.0))
    with pytest.raises(MediaError, match=r"it has 0\.1 MB, at most 0\.1 MB here"):
        uploads.checked(str(path))


def test_a_long_file_names_both_durations(uploads: Uploads) -> None:
    path = write_audio(uploads.folder / "long.mp3", tone(9.0))
    with pytest.raises(MediaError, match=r"it lasts 0\.\d minutes, at most 0\.05 here"):
        uploads.checked(str(path))


def test_an_address_uploads_so_much_in_a_day(tmp_path: Path) -> None:
    now = [0.0]
    uploads = Uploads(tmp_path, ServerOptions(max_upload_gb=0.001), clock=lambda: now[0])
    assert uploads.refusal("a", 900_000) is None
    status, reason = uploads.refusal("a", 200_000) or (0, "")
    assert status == 429
    assert "0.0009 GB came" in reason
    assert "at most 0.001 GB here" in reason
    assert uploads.refusal("b", 200_000) is None
    assert uploads.refusal("a", 100_000) is None
    now[0] = 86_400.0
    assert uploads.refusal("a", 900_000) is None


def test_uploads_leave_room_on_the_disk(uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(free=1_000_000_500)
    monkeypatch.setattr("video_llama.apps.page.uploads.shutil.disk_usage", lambda _: usage)
    assert uploads.refusal("a", 500) is None
    assert uploads.refusal("a", 501) == (507, ANY)
    assert uploads.refusal("a", None) == (411, ANY)


def test_what_broke_off_is_deleted(uploads: Uploads) -> None:
    old, new, whole = (uploads.folder / name for name in ("tmpold", "tmpnew", f"{HASH}/a.png"))
    for file in (old, new, whole):
        file.write_bytes(b"x")
    for file in (old, whole):
        os.utime(file, (1.0, 1.0))
    uploads.discard(set())
    assert [file.exists() for file in (old, new, whole)] == [False, True, True]


def test_messages_name_files_and_not_their_place(uploads: Uploads) -> None:
    path = uploads.folder / HASH / "my clip.mp4"
    assert uploads.message(MediaError(path, "it is empty")) == "my clip.mp4: it is empty"
    nested = RequestError(f"{path} is a sound, but {uploads.folder}/b.png is not")
    assert uploads.message(nested) == "my clip.mp4 is a sound, but b.png is not"
