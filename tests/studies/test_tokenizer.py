"""The shipped tokenizer is the one that its command makes, and knows the words of the world."""

from __future__ import annotations

from pathlib import Path

from sentencepiece import SentencePieceProcessor

from studies.pretrain.tokenizer import VOCAB_SIZE, corpus, main
from video_llama.common.io import package_file
from video_llama.synthetic.scene import COLOURS, KINDS, MOTIONS
from video_llama.text.templates import VICUNA
from video_llama.text.tokenizer import encode_text, load_tokenizer

SHIPPED = package_file("presets/tiny/llama")


def pieces(folder: Path) -> list[str]:
    processor = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return [processor.id_to_piece(index) for index in range(processor.vocab_size())]


def test_shipped_tokenizer_is_what_the_command_makes(tmp_path: Path) -> None:
    main([str(tmp_path)])
    assert pieces(tmp_path) == pieces(SHIPPED)
    assert len(pieces(SHIPPED)) == VOCAB_SIZE


def test_words_of_the_world_are_single_tokens() -> None:
    tokenizer = load_tokenizer(SHIPPED)
    words = [*KINDS, *COLOURS, *MOTIONS, "first", "then", "one", "two", "nothing", "yes", "no"]
    assert {
        w: n for w in words if (n := len(encode_text(tokenizer, w, parse_special=False))) > 1
    } == {}


def test_no_text_of_the_world_needs_byte_pieces() -> None:
    tokenizer = load_tokenizer(SHIPPED)
    for line in set(corpus()):
        assert min(encode_text(tokenizer, line, parse_special=False), default=259) >= 259, line


def test_stop_sign_behaves_as_in_the_vocabulary_of_llama() -> None:
    tokenizer = load_tokenizer(SHIPPED)
    forms = [tokenizer.convert_ids_to_tokens(ids) for ids in VICUNA.stop_ids(tokenizer)]
    assert forms == [["</s>"], ["▁###"], ["##", "#"]]
