"""Train the small tokenizer that ships with the package, on text about the synthetic world.

python -m studies.pretrain.tokenizer [FOLDER]
"""

from __future__ import annotations

import argparse
import io
import re
import string
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path

from sentencepiece import SentencePieceTrainer

from video_llama.common.io import package_file
from video_llama.synthetic.scene import KINDS
from video_llama.synthetic.wording import CHINESE, ENGLISH, Wording
from video_llama.text.questions import Media, frames_message
from video_llama.text.templates import TEMPLATES, Turn

VOCAB_SIZE = 700
"""Pieces: three special ones, 256 bytes, and characters, words and parts of words."""

BEGINNINGS = [
    "It is",
    "It stands",
    "It moves",
    "It sounds",
    "This is",
    "There is",
    "There are",
    "You see",
    "You hear",
    "The picture",
]
"""How sentences begin."""

CAPTION_PROMPTS = [
    "Describe this image in detail.",
    "Take a look at this image and describe what you notice.",
    "Please provide a detailed description of the picture.",
    "Could you describe the contents of this image for me?",
]
SYSTEM = (
    "You are able to understand the visual content that the user provides. "
    "Follow the instructions carefully and explain your answers in detail."
)


def corpus() -> Iterator[str]:
    """Yield the lines that the tokenizer is trained on, always the same ones in the same order."""
    yield from _sentences()
    # Counts decide which pieces come about: repetition makes a word a piece of its own.
    yield from 200 * BEGINNINGS
    yield from _prompts()
    # Every letter and mark alone, so that none needs bytes.
    yield from (" ".join(4 * sign) for sign in string.ascii_letters + string.punctuation)
    # Headings, which make `###` one piece at the start of a text and two after a line break, as in
    # LLaMA's vocabulary.
    yield from (f"## {kind} ## {digit}" for digit in string.digits for kind in KINDS)


def _sentences() -> Iterator[str]:
    for wording in (ENGLISH, CHINESE):
        things = [
            template.format(colour=colour, kind=kind)
            for template in wording.things
            for colour, kind in product(wording.colours.values(), wording.kinds.values())
        ]
        moves = [move for ways in wording.moves.values() for way in ways for move in way]
        yield from _filled(wording.captions.values(), things, moves, wording)
        yield from 8 * list(_filled(wording.questions.values(), things, moves, wording))
        # A motion stands in few sentences, and an answer is a word alone: they count more.
        answers = [*wording.kinds.values(), *wording.motions.values(), *wording.numbers]
        answers += [*wording.known_kinds.values(), *(4 * wording.yes_no), wording.nothing]
        yield from 100 * [*answers, *moves]


def _filled(
    groups: Iterable[Sequence[str]], things: Sequence[str], moves: Sequence[str], wording: Wording
) -> Iterator[str]:
    """Fill every template with every kind, colour and motion, but not in all combinations."""
    # Names that stand beside one another are offset, so that each meets some others.
    kinds, backgrounds = list(wording.known_kinds.values()), list(wording.backgrounds.values())
    for number, template in enumerate(template for group in groups for template in group):
        for index, thing in enumerate(things):
            at = index + number
            yield template.format(
                thing=thing,
                moves=moves[at % len(moves)],
                background=backgrounds[at % len(backgrounds)],
                first=thing,
                second=things[(5 * at + 1) % len(things)],
                this=kinds[at % len(kinds)],
                that=kinds[(at + 1 + index // len(kinds)) % len(kinds)],
            )


def _prompts() -> Iterator[str]:
    audio, video, image = Media("audio", 1), Media("video", 1), Media("image", 1)
    for name, start in product(TEMPLATES, range(10)):
        template = TEMPLATES.get(name)
        message = frames_message([start + frame / 2 for frame in range(8)])
        # What the chat and the trainings put around media, without the media themselves.
        for media in ((audio, video), (audio,), (image,), (Media("video", 1, message),)):
            turns = [Turn("What is it?", media, "A bell."), Turn("Which colour?")]
            for system in (None, SYSTEM):
                yield from re.split(
                    "\n|</?s>|<ImageHere>", template.chat_text(turns, system=system)
                )
        for prompt in CAPTION_PROMPTS:
            yield from template.caption_prompt.replace("{}", prompt).split("\n")


def train_tokenizer(path: Path, vocab_size: int = VOCAB_SIZE) -> None:
    """Train the tokenizer and write it to `path`, whose folder is made.

    Args:
        path: of `tokenizer.model`.
        vocab_size: pieces, the special ones and the bytes included.
    """
    model = io.BytesIO()
    # The options of LLaMA's own tokenizer, except that every character is kept.
    SentencePieceTrainer.train(
        sentence_iterator=corpus(),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        character_coverage=1.0,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,  # the same corpus has to give the same pieces
        minloglevel=1,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())


def main(arguments: list[str] | None = None) -> None:
    """Train and write into a folder, by default that of the tiny preset."""
    parser = argparse.ArgumentParser(prog="python -m studies.pretrain.tokenizer")
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=package_file("presets/tiny/llama"),
        help="where tokenizer.model goes (default: the tiny preset of the package)",
    )
    train_tokenizer(parser.parse_args(arguments).folder / "tokenizer.model")


if __name__ == "__main__":
    main()
