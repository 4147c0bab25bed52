"""From text to token ids, without any parsing that was not asked for.

A leaf of the import graph: models tokenise captions with it and data sets conversations, and both
must get the same ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def clean_text(text: str) -> str:
    """The text with every lone surrogate, which no UTF-8 can hold, replaced by U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def encode_text(tokenizer: PreTrainedTokenizerFast, text: str, *, parse_special: bool) -> list[int]:
    """Token ids of a text, without BOS.

    Args:
        tokenizer: made by `load_tokenizer`.
        text: any text: empty, with NUL, with lone surrogates (they become U+FFFD).
        parse_special: whether `</s>`, `<ImageHere>` and the like become their special token, as is
            right for templates; False, for whatever a user wrote, keeps them as plain text.
    """
    if not parse_special:
        return encode_pieces(tokenizer, [text])[0]
    ids: list[int] = tokenizer.backend_tokenizer.encode(
        clean_text(text), add_special_tokens=False
    ).ids
    return ids


def encode_pieces(tokenizer: PreTrainedTokenizerFast, pieces: Sequence[str]) -> list[list[int]]:
    """Token ids of the joined pieces, divided among them; special tokens stay plain text.

    The ids are those of the whole text in one call, so that pieces do not change the tokens. A
    token that reaches over a border belongs to the piece that holds its last byte.

    Args:
        tokenizer: made by `load_tokenizer`.
        pieces: consecutive parts of one text.

    Returns:
        One list of ids per piece, empty for a piece that is empty or was swallowed by the next.
    """
    cleaned = [clean_text(piece) for piece in pieces]
    groups: list[list[int]] = [[] for _ in cleaned]
    model, normalizer = tokenizer.backend_tokenizer.model, tokenizer.backend_tokenizer.normalizer
    # Offsets count bytes of the normalised text: a prefix, once, and every piece in its new size.
    prefix = len(normalizer.normalize_str("x").encode()) - 1
    sizes = [len(normalizer.normalize_str("x" + piece).encode()) - prefix - 1 for piece in cleaned]
    ends = list(accumulate(sizes, initial=prefix))[1:]
    index = 0
    # The BPE model alone knows no special tokens, and using it changes no state of the tokenizer,
    # which several threads may share.
    for token in model.tokenize(normalizer.normalize_str("".join(cleaned))):
        while token.offsets[1] > ends[index]:
            index += 1
        groups[index].append(token.id)
    return groups
