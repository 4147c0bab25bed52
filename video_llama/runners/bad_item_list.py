"""bad_items.jsonl: every item whose media could not be read, once, with path and reason."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from video_llama.files import atomic_write
from video_llama.runners.world import World
from video_llama.types import BadItem

BAD_ITEMS = "bad_items.jsonl"


class BadItemList:
    """The unreadable items that the processes of a run have met, in training and evaluation.

    A resumed run goes on with the list of the interrupted one.

    Args:
        folder: of the run.
        world: the processes; the main one writes.

    Attributes:
        path: of the file.
    """

    def __init__(self, folder: Path, world: World) -> None:
        self.path = folder / BAD_ITEMS
        self._world = world
        lines = world.on_main(self._read)
        self._listed = {(line["data_set"], line["item_id"]) for line in map(json.loads, lines)}

    def __len__(self) -> int:
        return len(self._listed)

    def add(self, items: Iterable[BadItem]) -> None:
        """List those that are new; every process has to call this, with its own."""
        lines = []
        for item in self._world.gather(list(items)):
            if (key := (item.data_set, item.item_id)) not in self._listed:
                self._listed.add(key)
                lines.append(json.dumps(asdict(item), ensure_ascii=False))
        if lines and self._world.is_main:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)

    def _read(self) -> list[str]:
        """The whole lines; one that a crash has cut short is taken out of the file."""
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8", errors="replace")
        kept = [line for line in text.splitlines() if _is_item(line)]
        whole = "".join(f"{line}\n" for line in kept)
        if whole != text:
            with atomic_write(self.path) as temporary:
                temporary.write_text(whole, encoding="utf-8")
        return kept


def _is_item(line: str) -> bool:
    try:
        item = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(item, dict) and {"data_set", "item_id"} <= item.keys()
