"""The folder of uploads: which files may be read, how much may be uploaded, what is deleted."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from video_llama.apps.page.options import ServerOptions
from video_llama.processors.media import probe
from video_llama.types import MediaError, VideoLlamaError

SECONDS_TO_ADD = 600
"""How long an upload is kept that no conversation has."""

SECONDS_OF_A_DAY = 86_400

FREE_BYTES = 1_000_000_000
"""Room that uploads leave on the disk."""


class Uploads:
    """The folder that uploads go to.

    Args:
        folder: of this server alone.
        options: its limits are applied here.
        clock: returns the time, in seconds.
    """

    def __init__(
        self, folder: Path, options: ServerOptions, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.folder = folder.resolve()
        self._options = options
        # Gradio puts an upload into a folder that is named by the hash of its content.
        self._hashed = re.compile(re.escape(str(self.folder)) + r"/(?:[0-9a-f]{16,}/)?")
        self._clock, self._day = clock, clock()
        self._taken: Counter[str] = Counter()  # bytes of the day, by address
        self._lock = threading.Lock()

    def refusal(self, address: str, size: int | None) -> tuple[int, str] | None:
        """Count an upload of `size` bytes, or return the HTTP status and reason of its refusal.

        Args:
            address: where it comes from.
            size: of the request, bytes; None: unknown.
        """
        if size is None or size < 0:
            return 411, "an upload has to say its size first (the header Content-Length)"
        most = self._options.max_upload_gb
        with self._lock:
            # One day for all addresses: nothing has to be kept about each.
            if self._clock() - self._day >= SECONDS_OF_A_DAY:
                self._day = self._clock()
                self._taken.clear()
            if self._taken[address] + size > most * 1e9:
                return 429, (
                    f"{self._taken[address] / 1e9:.3g} GB came from your address within a day, and "
                    f"this upload has {size / 1e9:.3g} GB: at most {most:g} GB here; come back "
                    "tomorrow, or hand in smaller files"
                )
            if shutil.disk_usage(self.folder).free - size < FREE_BYTES:
                return 507, "the server has no room for uploads; try again later"
            self._taken[address] += size
        return None

    def holds(self, path: str) -> bool:
        """Return whether a path, links followed, is inside of the folder."""
        try:
            return Path(path).is_absolute() and Path(path).resolve().is_relative_to(self.folder)
        except (OSError, ValueError, RuntimeError):  # too long, a NUL, a loop of links
            return False

    def checked(self, path: str) -> Path:
        """Return the path of a file that may be read.

        Raises:
            MediaError: it was not uploaded, is too large or lasts too long, or is no media file.
        """
        if not self.holds(path):
            raise MediaError(Path(path).name[:80], "it was not uploaded to this page")
        file = Path(path)
        if not file.is_file():
            raise MediaError(file, "it is no longer there; upload it again")
        megabytes = file.stat().st_size / 1e6
        if megabytes > self._options.max_file_mb:
            raise MediaError(
                file, f"it has {megabytes:,.1f} MB, at most {self._options.max_file_mb:g} MB here"
            )
        # Before anything is decoded: the header says how long the file lasts.
        minutes = (probe(file).duration or 0.0) / 60
        if minutes > self._options.max_minutes:
            raise MediaError(
                file,
                f"it lasts {minutes:,.1f} minutes, at most {self._options.max_minutes:g} here; "
                "cut out what matters",
            )
        return file

    def discard(self, files: set[Path]) -> set[Path]:
        """Delete uploads that no conversation needs any more; the page's own examples stay.

        Equal files of two visitors have one place, so what was uploaded lately is kept for a while:
        somebody may be about to add it.

        Returns:
            Those that are to be tried again later.
        """
        self._discard_torn()
        young = set()
        for file in files:
            # The examples lie in a folder without a hash, and are not to be deleted.
            if not (self.holds(str(file)) and self._hashed.fullmatch(f"{file.parent}/")):
                continue
            if file.exists() and time.time() - file.stat().st_ctime < SECONDS_TO_ADD:
                young.add(file)
            else:
                file.unlink(missing_ok=True)
        return young

    def _discard_torn(self) -> None:
        """Delete what broken-off uploads have left; complete ones lie in folders of their own."""
        for file in self.folder.iterdir():
            try:
                if file.is_file() and time.time() - file.stat().st_mtime >= SECONDS_TO_ADD:
                    file.unlink()
            except FileNotFoundError:  # Gradio has just moved it, complete
                continue

    def message(self, error: VideoLlamaError) -> str:
        """Return the text of an error, with names of files instead of paths on this machine."""
        return self._hashed.sub("", str(error))
