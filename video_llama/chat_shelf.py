"""The files of one conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from video_llama.chat_item import MediaItem, MediaSource, Progress
from video_llama.types import RequestError

if TYPE_CHECKING:
    from video_llama.chat import Chat


class Shelf:
    """The files of a session, each encoded once.

    Args:
        chat: encodes, and knows how much fits into a prompt.

    Attributes:
        items: in the order of their arrival.
    """

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self.items: list[MediaItem] = []

    @property
    def num_bytes(self) -> int:
        """Memory of all items; what they share counts once."""
        tensors = {id(t): t.nbytes for item in self.items for t in item.tensors}
        return sum(tensors.values())

    def read(
        self, path: str | Path, source: MediaSource, *, use_audio: bool, progress: Progress | None
    ) -> MediaItem:
        """An item for a file, which is not put on the shelf yet.

        Args:
            path: as the user gave it.
            source: what is asked for; equal to that of an item here: nothing is encoded again.
            use_audio: whether the sound of a clip is heard.
            progress: told what is being done.

        Raises:
            MediaError: the file cannot be used.
        """
        encoder = self._chat.encoder
        known = next((item for item in self.items if item.source == source), None)
        if known is None:
            decoded = encoder.decode(path, source, use_audio=use_audio, progress=progress)
            encoder.finish([decoded], progress)
            return decoded.item
        item = replace(known, path=Path(path), timings={"decode": 0.0, "encode": 0.0})
        if item.kind == "video":
            encoder.switch_sound(item, use_audio, progress)
        return item

    def put(self, item: MediaItem) -> None:
        """Add an item.

        Raises:
            RequestError: all together they would not fit into a prompt.
        """
        self._check_room([*self.items, item])
        self.items.append(item)

    def switched(self, item: MediaItem, on: bool, progress: Progress | None) -> MediaItem:
        """A copy of a clip that is heard, or not.

        Raises:
            RequestError: it is no clip.
            MediaError: its sound cannot be read.
        """
        if item.kind != "video":
            raise RequestError(f"{item.path.name} is no clip: its sound cannot be switched")
        copy = replace(item, timings=dict(item.timings))
        self._chat.encoder.switch_sound(copy, on, progress)
        return copy

    def exchange(self, item: MediaItem, copy: MediaItem) -> None:
        """Let an item become like its copy, where it stands.

        Raises:
            RequestError: it is not here any more, or all together would not fit into a prompt.
        """
        self.check_mine(item)
        self._check_room([copy if other is item else other for other in self.items])
        vars(item).update(vars(copy))

    def remove(self, item: MediaItem) -> None:
        """Take an item away.

        Raises:
            RequestError: it is not here.
        """
        self.check_mine(item)
        self.items = [other for other in self.items if other is not item]

    def clear(self) -> None:
        """Take everything away."""
        self.items = []

    def check_mine(self, item: MediaItem) -> None:
        """Whether an item is here.

        Raises:
            RequestError: it is not.
        """
        if not any(other is item for other in self.items):
            raise RequestError(f"{item.path.name} is not in this session")

    def _check_room(self, items: Sequence[MediaItem]) -> None:
        """Whether all fit into the context, with a question beside them."""
        needed, context = self._chat.prompts.num_media_tokens(items), self._chat.context
        if needed >= context:
            raise RequestError(
                f"the files take {needed} tokens together, but the model's context holds "
                f"{context}; take one out, or start another session"
            )
