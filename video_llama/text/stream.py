"""Turn token ids into text while they are generated.

`StreamDecoder` decodes ids one by one. `AnswerStream` holds back what may be part of a stop mark.
Torch-free.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from video_llama.text.tokenizer import WORD_START

if TYPE_CHECKING:
    from transformers import LlamaTokenizer


class StreamDecoder:
    """Decoder from token ids to text, one by one, in time linear in their number.

    The returned texts joined are `tokenizer.decode(ids, skip_special_tokens=True)`, spaces
    included. Nothing is given out that a later id could change: a run of byte pieces (a character
    that the vocabulary lacks, a newline) waits for the first id after it.
    """

    def __init__(self, tokenizer: LlamaTokenizer) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._special = set(tokenizer.all_special_ids)
        self._bytes = bytearray()
        self._started = False

    def push(self, token_id: int) -> str:
        """Return the text that this id makes certain; often empty inside a run of byte pieces."""
        piece = self._backend.id_to_token(token_id)
        if piece is None or token_id in self._special:
            return ""
        byte = _byte_of(piece)
        if byte is not None:
            self._bytes.append(byte)
            return ""
        return self._strip_first_space(self._flush() + piece.replace(WORD_START, " "))

    def finish(self) -> str:
        """Return the text that was still waiting and get ready for another sequence."""
        text = self._strip_first_space(self._flush())
        self._started = False
        return text

    def _flush(self) -> str:
        data = bytes(self._bytes)
        self._bytes.clear()
        try:
            return data.decode()
        except UnicodeDecodeError:
            # As the tokenizer's own decoder has it: a run with an error is lost as a whole.
            return "\ufffd" * len(data)

    def _strip_first_space(self, text: str) -> str:
        # The space that every text gets before its first word is not part of it.
        if text and not self._started:
            self._started = True
            return text.removeprefix(" ")
        return text


def _byte_of(piece: str) -> int | None:
    """Return the value of a byte piece such as `<0x0A>`, None for every other piece."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return int(piece[3:5], 16)
    return None


class AnswerStream:
    """Filter from the text of a model to the text for the user, as early as it is certain.

    Leading and trailing white space is dropped, and nothing is shown that may be the beginning of a
    stop mark.

    Attributes:
        stopped: whether a stop mark was met; what follows it is dropped.
    """

    def __init__(self, stop_texts: Sequence[str]) -> None:
        self._stop_texts = stop_texts
        self._waiting = ""
        self._started = False
        self.stopped = False

    def push(self, text: str) -> str:
        """Return the text that may be shown now that `text` has arrived."""
        if self.stopped:
            return ""
        self._waiting += text
        # The earliest mark counts: behind it the model goes on with a turn of its own invention.
        found = [at for stop in self._stop_texts if (at := self._waiting.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._waiting = self._waiting[: min(found)]
            return self._show(len(self._waiting.rstrip()))
        return self._show(len(self._waiting) - self._num_doubtful())

    def finish(self) -> str:
        """Return the text that waited for a stop mark which never came."""
        return "" if self.stopped else self._show(len(self._waiting.rstrip()))

    def _num_doubtful(self) -> int:
        """Count the characters at the end that may become a stop mark, or be trailing space."""
        # The longest end of the text that is the beginning of some mark.
        text = self._waiting
        longest = max(
            (
                size
                for stop in self._stop_texts
                for size in range(len(stop))
                if text.endswith(stop[:size])
            ),
            default=0,
        )
        return len(text) - len(text[: len(text) - longest].rstrip())

    def _show(self, size: int) -> str:
        shown, self._waiting = self._waiting[:size], self._waiting[size:]
        if not self._started:
            shown = shown.lstrip()
            self._started = bool(shown)
        return shown
