"""Load the LLaMA tokenizer with the ids that the released weights were trained with, and use it.

Models tokenise captions with these functions, data sets conversations, the chat its prompts: all
get the same ids. Importing this module is quick; transformers and sentencepiece are imported when
a tokenizer is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from video_llama.types import IMAGE_PLACEHOLDER, ConfigError, WeightsError

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from transformers import LlamaTokenizer, PreTrainedTokenizerFast

TOKENIZER_FILE = "tokenizer.model"
SPECIAL_PIECES = ["<unk>", "<s>", "</s>"]
WORD_START = "\u2581"
"""What sentencepiece writes for a space, and puts before every text."""

PROBE = "A bell, then  a bird: 12.5\n#1 \u00e9 \u4e2d\U0001f600 "
"""Text that a tokenizer of another kind, or with another normaliser, splits otherwise."""


def load_tokenizer(folder: str | Path) -> LlamaTokenizer:
    """Load the tokenizer of a LLaMA folder, with `<ImageHere>` added as a special token.

    Gives the ids of the sentencepiece tokenizer of transformers 4.28, which trained the released
    weights: text is split at special tokens, every part gets its own leading word start, and
    leading and double spaces are kept. `from_pretrained` of transformers 5 does none of that, and
    `save_pretrained` loses it: reload from the original folder.

    Args:
        folder: holds `tokenizer.model`, a sentencepiece BPE model with byte fallback.

    Returns:
        A tokenizer that adds BOS, pads on the right with `<unk>` (id 0) and knows
        `image_token_id`, which is the size of the language model's vocabulary.

    Raises:
        ConfigError: there is no such folder or no `tokenizer.model` in it.
        WeightsError: the file is not a LLaMA tokenizer: damaged, a Git-LFS pointer, another kind.
    """
    from tokenizers.normalizers import Prepend, Replace
    from tokenizers.normalizers import Sequence as NormalizerSequence
    from transformers import LlamaTokenizer
    from transformers.tokenization_utils_base import generate_merges

    path = _find_model(Path(folder))
    processor = _read_model(path)
    size = processor.vocab_size()
    vocab = {processor.id_to_piece(index): index for index in range(size)}
    scores = {piece: processor.get_score(index) for piece, index in vocab.items()}
    # Control and byte pieces must never be the result of a merge: text would turn into them.
    kinds = (processor.is_unknown, processor.is_control, processor.is_byte)
    reserved = [piece for piece, index in vocab.items() if any(is_kind(index) for is_kind in kinds)]
    tokenizer = LlamaTokenizer(
        vocab=vocab,
        merges=generate_merges(vocab, scores, reserved),
        add_bos_token=True,
        padding_side="right",
        extra_special_tokens={"image_token": IMAGE_PLACEHOLDER},
    )
    # The word start goes before every stretch of text, also after a special token, and no space is
    # dropped: the legacy behaviour, which the class itself no longer offers.
    backend = tokenizer.backend_tokenizer
    backend.normalizer = NormalizerSequence([Prepend(WORD_START), Replace(" ", WORD_START)])
    backend.pre_tokenizer = None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token
    if encode_text(tokenizer, PROBE, parse_special=False) != processor.encode(PROBE):
        raise WeightsError(
            f"{path}: not of LLaMA's kind (sentencepiece BPE with byte fallback, a word start "
            "before every text, text left as it is); give the tokenizer of a LLaMA"
        )
    return tokenizer


def _find_model(folder: Path) -> Path:
    advice = f"give the folder of a LLaMA, which holds {TOKENIZER_FILE}"
    if folder.is_file():
        raise ConfigError(f"model.llama_model: {folder} is a file; {advice}")
    if not folder.is_dir():
        raise ConfigError(f"model.llama_model: there is no folder {folder}; {advice}")
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise ConfigError(f"model.llama_model: there is no {TOKENIZER_FILE} in {folder}; {advice}")
    return path


def _read_model(path: Path) -> SentencePieceProcessor:
    from sentencepiece import SentencePieceProcessor

    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error}") from error
    if data.startswith(b"version https://git-lfs"):
        raise WeightsError(
            f"{path}: is a Git-LFS pointer of {len(data)} bytes, not the tokenizer; "
            "run `git lfs pull` in its folder or download the file itself"
        )
    # sentencepiece takes an empty model without complaint.
    if not data:
        raise _damaged(path, data, "the file is empty")
    try:
        processor = SentencePieceProcessor(model_proto=data)
    except RuntimeError as error:
        raise _damaged(path, data, str(error)) from error
    size = processor.vocab_size()
    first = [processor.id_to_piece(index) for index in range(min(size, len(SPECIAL_PIECES)))]
    if first != SPECIAL_PIECES:
        raise _damaged(path, data, f"its first pieces are {first}, not {SPECIAL_PIECES}")
    return processor


def _damaged(path: Path, data: bytes, reason: str) -> WeightsError:
    return WeightsError(
        f"{path}: {len(data)} bytes that are no LLaMA tokenizer ({reason}); the file is damaged, "
        "its download incomplete, or it belongs to another kind of model"
    )


def clean_text(text: str) -> str:
    """Replace every lone surrogate, which no UTF-8 can hold, by U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def encode_text(tokenizer: PreTrainedTokenizerFast, text: str, *, parse_special: bool) -> list[int]:
    """Return the token ids of a text, without BOS.

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
    """Return the token ids of the joined pieces, divided among them; special tokens stay text.

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
