"""The LLaMA tokenizer with the ids that the released weights were trained with."""

from __future__ import annotations

from pathlib import Path

from sentencepiece import SentencePieceProcessor
from tokenizers.normalizers import Prepend, Replace
from tokenizers.normalizers import Sequence as NormalizerSequence
from transformers import LlamaTokenizer
from transformers.tokenization_utils_base import generate_merges

from video_llama.text.encoding import encode_pieces, encode_text
from video_llama.types import IMAGE_PLACEHOLDER, ConfigError, WeightsError

__all__ = ["StreamDecoder", "encode_pieces", "encode_text", "load_tokenizer"]

TOKENIZER_FILE = "tokenizer.model"
SPECIAL_PIECES = ["<unk>", "<s>", "</s>"]
WORD_START = "\u2581"
"""What sentencepiece writes for a space, and puts before every text."""

PROBE = "A bell, then  a bird: 12.5\n#1 \u00e9 \u4e2d\U0001f600 "
"""Text that a tokenizer of another kind, or with another normaliser, splits otherwise."""


def load_tokenizer(folder: str | Path) -> LlamaTokenizer:
    """The tokenizer of a LLaMA folder, with `<ImageHere>` added as a special token.

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
    path = _find(Path(folder))
    processor = _read(path)
    size = processor.vocab_size()
    vocab = {processor.id_to_piece(index): index for index in range(size)}
    scores = {piece: processor.get_score(index) for piece, index in vocab.items()}
    # Control and byte pieces must never be the result of a merge: text would turn into them.
    reserved = [piece for piece, index in vocab.items() if not _is_plain(processor, index)]
    tokenizer = LlamaTokenizer(
        vocab=vocab,
        merges=generate_merges(vocab, scores, reserved),
        add_bos_token=True,
        padding_side="right",
        extra_special_tokens={"image_token": IMAGE_PLACEHOLDER},
    )
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


def _is_plain(processor: SentencePieceProcessor, index: int) -> bool:
    special = processor.is_unknown(index) or processor.is_control(index)
    return not (special or processor.is_byte(index))


def _find(folder: Path) -> Path:
    advice = f"give the folder of a LLaMA, which holds {TOKENIZER_FILE}"
    if folder.is_file():
        raise ConfigError(f"model.llama_model: {folder} is a file; {advice}")
    if not folder.is_dir():
        raise ConfigError(f"model.llama_model: there is no folder {folder}; {advice}")
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise ConfigError(f"model.llama_model: there is no {TOKENIZER_FILE} in {folder}; {advice}")
    return path


def _read(path: Path) -> SentencePieceProcessor:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error}") from error
    if data.startswith(b"version https://git-lfs"):
        raise WeightsError(
            f"{path}: is a Git-LFS pointer of {len(data)} bytes, not the tokenizer; "
            "run `git lfs pull` in its folder or download the file itself"
        )
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


class StreamDecoder:
    """Token ids to text, one by one, in time linear in their number.

    The returned texts joined are `tokenizer.decode(ids, skip_special_tokens=True)`, spaces
    included. Nothing is given out that a later id could change: a run of byte pieces (a character
    that the vocabulary lacks, a newline) waits for the first id after it.

    Args:
        tokenizer: made by `load_tokenizer`.
    """

    def __init__(self, tokenizer: LlamaTokenizer) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._special = set(tokenizer.all_special_ids)
        self._bytes = bytearray()
        self._started = False

    def push(self, token_id: int) -> str:
        """The text that this id makes certain; often empty inside a run of byte pieces."""
        piece = self._backend.id_to_token(token_id)
        if piece is None or token_id in self._special:
            return ""
        byte = _byte_of(piece)
        if byte is not None:
            self._bytes.append(byte)
            return ""
        return self._give(self._flush() + piece.replace(WORD_START, " "))

    def finish(self) -> str:
        """The text that was still waiting; the decoder is ready for another sequence."""
        text = self._give(self._flush())
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

    def _give(self, text: str) -> str:
        # The space that every text gets before its first word is not part of it.
        if text and not self._started:
            self._started = True
            return text.removeprefix(" ")
        return text


def _byte_of(piece: str) -> int | None:
    """The value of a byte piece such as `<0x0A>`, None for every other piece."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return int(piece[3:5], 16)
    return None
