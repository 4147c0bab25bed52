"""The tokenizer gives the ids that the released weights were trained with."""

from __future__ import annotations

import json
import pickle
import random
import shutil
from itertools import chain, pairwise
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from transformers import LlamaTokenizer

from tests.reference import SHARED, needs_shared
from tests.text.tokenizers import FOLDERS, SHIPPED, random_texts
from video_llama.text.tokenizer import encode_pieces, encode_text, load_tokenizer
from video_llama.types import IMAGE_PLACEHOLDER, ConfigError, WeightsError

SPECIALS = ["<unk>", "<s>", "</s>", IMAGE_PLACEHOLDER]


@needs_shared
def test_ids_equal_those_of_the_original() -> None:
    tokenizer = load_tokenizer(FOLDERS["llama"])
    cases = json.loads((SHARED / "golden/token_ids_llama_tokenizer.json").read_text("utf-8"))
    assert len(cases) > 600
    assert [text for text, ids in cases if tokenizer(text).input_ids != ids] == []
    assert [
        text for text, ids in cases if encode_text(tokenizer, text, parse_special=True) != ids[1:]
    ] == []


def test_plain_text_equals_sentencepiece(folder: Path, tokenizer: LlamaTokenizer) -> None:
    reference = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    texts = [*random_texts(40), "a" * 5000, " " * 5000, "#" * 333]
    assert [
        text
        for text in texts
        if encode_text(tokenizer, text, parse_special=False) != reference.encode(text)
    ] == []


def test_text_is_split_at_special_tokens_and_every_part_tokenised_as_a_text(
    folder: Path, tokenizer: LlamaTokenizer
) -> None:
    reference = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    rng = random.Random(1)
    for _ in range(100):
        expected: list[int] = []
        text = ""
        for part in rng.choices([" a bell", "red  ", " ", ""], k=4):
            special = rng.choice(SPECIALS)
            text += part + special
            expected += [*reference.encode(part), tokenizer.convert_tokens_to_ids(special)]
        assert encode_text(tokenizer, text, parse_special=True) == expected, text


def test_special_ids(folder: Path, tokenizer: LlamaTokenizer) -> None:
    size = SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).vocab_size()
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert (tokenizer.pad_token_id, tokenizer.padding_side) == (0, "right")
    assert tokenizer.image_token_id == tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER) == size
    assert tokenizer("").input_ids == [1]


def test_no_text_becomes_a_control_or_byte_piece(tokenizer: LlamaTokenizer) -> None:
    for text in [*SPECIALS, "<0x41>", "a</s>b", "".join(SPECIALS)]:
        ids = encode_text(tokenizer, text, parse_special=False)
        assert not set(ids) & {*tokenizer.all_special_ids, *range(3, 259)}
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("parse_special", [True, False])
@pytest.mark.parametrize("text", ["", "\x00", "a\ud800b", "\udfff", "\ud83d\ude00", "x y" * 33_000])
def test_no_text_is_refused(text: str, parse_special: bool) -> None:
    tokenizer = load_tokenizer(SHIPPED)
    ids = encode_text(tokenizer, text, parse_special=parse_special)
    clean = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert tokenizer.decode(ids) == clean


def test_pieces_do_not_change_the_ids(tokenizer: LlamaTokenizer) -> None:
    rng = random.Random(2)
    for text in random_texts(10):
        cuts = sorted(rng.choices(range(len(text) + 1), k=3))
        bounds = [0, *cuts, len(text)]
        pieces = [text[a:b] for a, b in pairwise(bounds)]
        groups = encode_pieces(tokenizer, pieces)
        assert len(groups) == len(pieces)
        assert list(chain.from_iterable(groups)) == encode_text(
            tokenizer, text, parse_special=False
        )


def test_a_token_belongs_to_the_piece_of_its_last_byte() -> None:
    tokenizer = load_tokenizer(SHIPPED)
    groups = encode_pieces(tokenizer, ["It is", " ", "red", "", "\n铃"])
    tokens = [tokenizer.convert_ids_to_tokens(group) for group in groups]
    assert tokens == [["▁It", "▁is"], [], ["▁red"], [], ["<0x0A>", "铃"]]
    assert encode_pieces(tokenizer, ["", ""]) == [[], []]
    assert encode_pieces(tokenizer, []) == []


def test_tokenizer_survives_pickling(tokenizer: LlamaTokenizer) -> None:
    copy = pickle.loads(pickle.dumps(tokenizer))
    text = f"  a  bell</s> {IMAGE_PLACEHOLDER} x"
    assert copy(text).input_ids == tokenizer(text).input_ids
    assert copy.image_token_id == tokenizer.image_token_id


def broken_folder(tmp_path: Path, content: bytes | None) -> Path:
    if content is not None:
        (tmp_path / "tokenizer.model").write_bytes(content)
    return tmp_path


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, ConfigError, r"no tokenizer\.model in"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            WeightsError,
            "LFS",
        ),
        (b"", WeightsError, "empty"),
        (b"no tokenizer at all" * 20, WeightsError, "damaged"),
        ((SHIPPED / "tokenizer.model").read_bytes()[:4000], WeightsError, "damaged"),
    ],
)
def test_unusable_file_is_named_with_its_cause(
    tmp_path: Path, content: bytes | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        load_tokenizer(broken_folder(tmp_path, content))
    assert str(tmp_path) in str(caught.value)


def test_missing_folder_and_file_instead_of_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no folder .*nowhere"):
        load_tokenizer(tmp_path / "nowhere")
    shutil.copy(SHIPPED / "tokenizer.model", tmp_path)
    with pytest.raises(ConfigError, match="is a file"):
        load_tokenizer(tmp_path / "tokenizer.model")


def train(folder: Path, lines: list[str], **options: str | bool) -> None:
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=290,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )


def test_tokenizer_of_another_kind_is_refused(tmp_path: Path) -> None:
    train(tmp_path, [f"a bell {n} and a drum" for n in range(300)], model_type="unigram")
    with pytest.raises(WeightsError, match="not of LLaMA's kind"):
        load_tokenizer(tmp_path)


def test_parts_of_a_control_piece_in_the_vocabulary_do_not_merge_to_it(tmp_path: Path) -> None:
    train(
        tmp_path,
        ["a</s b</s c</s 1>"] * 9,
        model_type="bpe",
        split_by_unicode_script=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )
    tokenizer = load_tokenizer(tmp_path)
    assert {"</s", ">"} <= set(tokenizer.get_vocab())
    ids = encode_text(tokenizer, "a</s>", parse_special=False)
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids) == "a</s>"
