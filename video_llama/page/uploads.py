"""The files that visitors hand in: only those, of a bearable size and length."""

from __future__ import annotations

import re
from pathlib import Path

from video_llama.page.options import ServerOptions
from video_llama.processors.media import probe
from video_llama.types import MediaError, VideoLlamaError


class Uploads:
    """The folder that uploads go to.

    Args:
        folder: of this server alone.
        options: the largest size and the longest duration.
    """

    def __init__(self, folder: Path, options: ServerOptions) -> None:
        self.folder = folder.resolve()
        self._options = options
        self._hashed = re.compile(re.escape(str(self.folder)) + r"/(?:[0-9a-f]{16,}/)?")

    def holds(self, path: str) -> bool:
        """Whether a path, links followed, is inside of the folder."""
        try:
            return Path(path).is_absolute() and Path(path).resolve().is_relative_to(self.folder)
        except (OSError, ValueError, RuntimeError):  # too long, a NUL, a loop of links
            return False

    def checked(self, path: str) -> Path:
        """The path of a file that may be read.

        Args:
            path: as the visitor's page or program names it.

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
        minutes = (probe(file).duration or 0.0) / 60
        if minutes > self._options.max_minutes:
            raise MediaError(
                file,
                f"it lasts {minutes:,.1f} minutes, at most {self._options.max_minutes:g} here; "
                "cut out what matters",
            )
        return file

    def discard(self, files: set[Path]) -> None:
        """Delete uploads that nobody needs any more; the page's own examples stay."""
        for file in files:
            if self.holds(str(file)) and self._hashed.fullmatch(f"{file.parent}/"):
                file.unlink(missing_ok=True)

    def message(self, error: VideoLlamaError) -> str:
        """What an error says, with the names of files instead of places on this machine."""
        return self._hashed.sub("", str(error))
