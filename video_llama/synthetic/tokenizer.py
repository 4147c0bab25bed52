"""Trains the small tokenizer that ships with the package, on text about the synthetic world.

python -m video_llama.synthetic.tokenizer [FOLDER]
"""
# ruff: noqa: RUF001 - the Chinese sentences have Chinese punctuation.

from __future__ import annotations

import argparse
import io
import re
import string
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from sentencepiece import SentencePieceTrainer

from video_llama.datasets.conversation import TEMPLATES, Media, Turn, frames_message
from video_llama.resources import package_file

VOCAB_SIZE = 700
"""Pieces: three special ones, 256 bytes, and characters, words and parts of words."""

KINDS = {
    "bell": "铃",
    "drum": "鼓",
    "bird": "鸟",
    "siren": "警笛",
    "whistle": "哨子",
    "engine": "引擎",
}
COLOURS = {
    "red": "红色",
    "green": "绿色",
    "blue": "蓝色",
    "yellow": "黄色",
    "white": "白色",
    "purple": "紫色",
}
MOTIONS = {
    "moves left": "向左移动",
    "moves right": "向右移动",
    "moves up": "向上移动",
    "moves down": "向下移动",
    "stands still": "静止不动",
    "is growing": "变大",
    "is shrinking": "变小",
}
QUESTIONS = [
    "What do you see?",
    "What do you hear?",
    "What colour is the {kind}?",
    "Which way does the {kind} move?",
    "Is there a {kind}? Answer yes or no.",
    "What happens first, and what happens then?",
    "Is the sound from the thing you see, or is it silent?",
    "How many things are there? Describe the video.",
    "Which sound comes first, which comes last?",
    "Look at the image and listen to the audio: what is shown on the picture?",
]
CHINESE_QUESTIONS = [
    "你看到了什么？",
    "你听到了什么？",
    "{kind}是什么颜色？",
    "它向哪里移动？",
    "先有什么，然后有什么？",
    "有声音吗？没有声音。",
]
ANSWERS = ["Yes.", "No.", "It is not there.", "I see nothing.", "I hear nothing, it is silent."]
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
    """The lines that the tokenizer is trained on; always the same ones, in the same order."""
    yield from _sentences()
    yield from _prompts()
    # Every letter and mark alone, so that none needs bytes.
    yield from (" ".join(4 * sign) for sign in string.ascii_letters + string.punctuation)
    # Headings, which make `###` one piece at the start of a text and two after a line break, as in
    # LLaMA's vocabulary.
    yield from (f"## {kind} ## {digit}" for digit in string.digits for kind in KINDS)


def _sentences() -> Iterator[str]:
    for (kind, kind_zh), (colour, colour_zh), (motion, motion_zh) in product(
        KINDS.items(), COLOURS.items(), MOTIONS.items()
    ):
        yield f"a {colour} {kind} {motion}"
        yield f"A {colour} {kind} {motion}."
        yield f"It is {colour}. The {colour} {kind} is {motion.split()[-1]}."
        yield f"{colour_zh}的{kind_zh}{motion_zh}。"
    for first, then in product(KINDS, KINDS):
        yield f"First a {first}, then a {then}. You see a {first} and hear a {then}."
        yield f"the sound of a {first} and then a {then}"
        yield f"先有{KINDS[first]}，然后有{KINDS[then]}。"
    for (kind, kind_zh), _ in product(KINDS.items(), range(5)):
        yield from (question.replace("{kind}", kind) for question in QUESTIONS)
        yield from (question.replace("{kind}", kind_zh) for question in CHINESE_QUESTIONS)
        yield from ANSWERS


def _prompts() -> Iterator[str]:
    audio, video, image = Media("audio", 1), Media("video", 1), Media("image", 1)
    for name, start in product(TEMPLATES, range(10)):
        template = TEMPLATES.get(name)
        message = frames_message([start + frame / 2 for frame in range(8)])
        for media in ((audio, video), (audio,), (image,), (Media("video", 1, message),)):
            turns = [Turn("What is it?", media, "A bell."), Turn("Which colour?")]
            for system in (None, SYSTEM):
                yield from re.split(
                    "\n|</?s>|<ImageHere>", template.chat_text(turns, system=system)
                )
        for prompt in CAPTION_PROMPTS:
            yield from template.caption_prompt.replace("{}", prompt).split("\n")


def train_tokenizer(path: Path, vocab_size: int = VOCAB_SIZE) -> None:
    """Train the tokenizer and write it to a file.

    The options are those of LLaMA's own tokenizer, except that every character is kept.

    Args:
        path: `tokenizer.model` to write; its folder is made.
        vocab_size: pieces, the special ones and the bytes included.
    """
    model = io.BytesIO()
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
        num_threads=1,
        minloglevel=1,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())


def main(arguments: list[str] | None = None) -> None:
    """Command line: train and write into a folder, by default the tiny preset."""
    parser = argparse.ArgumentParser(description=train_tokenizer.__doc__)
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
