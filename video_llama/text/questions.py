"""Compose questions about media from typed pieces: text, placeholders, special tokens.

The sentences that introduce each kind of medium stand here, and nowhere else. Torch-free.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from video_llama.text.tokenizer import encode_pieces
from video_llama.types import IMAGE_PLACEHOLDER, ConfigError, MediaKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LISTEN = "Close your eyes, open your ears and you imagine only based on the sound that: "
LOOK = "Close your ears, open your eyes and you see that "
ANSWER_SOUND = "Now answer my question based on what you have just heard. "
ANSWER_BOTH = "Now answer my question based on what you have just seen and heard. "
MARKS = {"image": ("<Image>", "</Image>"), "video": ("<Video>", "</Video>"), "audio": ("", "")}


@dataclass(frozen=True)
class Piece:
    """A part of a conversation.

    Attributes:
        text: plain text, or the name of a special token.
        supervised: whether its tokens carry loss.
        special: whether `text` is one special token rather than text to tokenise.
        count: how often a special token is repeated.
    """

    text: str
    supervised: bool = False
    special: bool = False
    count: int = 1


QuestionText = str | Sequence[Piece]
"""Pieces, or a text in which every `<ImageHere>` is a placeholder."""


@dataclass(frozen=True)
class Media:
    """A picture, clip or sound in a question.

    Attributes:
        num_tokens: how many token positions it takes.
        message: what is said about it, such as `frames_message`; empty or with a trailing space.
    """

    kind: MediaKind
    num_tokens: int
    message: str = ""


def frames_message(seconds: Sequence[float]) -> str:
    """Return the sentence about the times of a clip's frames, in seconds, with a trailing space."""
    times = ", ".join(str(round(float(second), 1)) for second in seconds)
    return f"The video contains {len(seconds)} frames sampled at {times} seconds. "


def media_question(media: Sequence[Media], question: str) -> list[Piece]:
    """Lead a question with media, in their order; the question itself stays plain text.

    Pictures and clips stand in their marks, as in training. With sound among them, every item gets
    a sentence: the original's prompt for sound and picture, with single spaces and with the message
    of a clip, which the original forgot there.

    Args:
        media: none for a question that follows up.
    """
    # With sound among the media the model must be told what it sees and what it hears.
    with_sound = any(item.kind == "audio" for item in media)
    pieces: list[Piece] = []
    for item in media:
        if not with_sound:
            pieces += [*_marked(item), Piece(f" {item.message}")]
        else:
            lead = LISTEN if item.kind == "audio" else LOOK
            pieces += [Piece(lead), *_marked(item), Piece(f". {item.message}")]
    if with_sound:
        only_sound = all(item.kind == "audio" for item in media)
        pieces.append(Piece(ANSWER_SOUND if only_sound else ANSWER_BOTH))
    return [*pieces, Piece(question)]


def image_question(question: str, num_tokens: int, *, mark: str = "<image>") -> list[Piece]:
    """Replace every mark in a question of LLaVA's data by a picture of `num_tokens` positions."""
    return _split(question, mark, _marked(Media("image", num_tokens)))


def caption_prompts(lines: Iterable[str], frame: str) -> list[str]:
    """Return the stage-2 caption prompts of the lines of a prompt file.

    Args:
        lines: those with `<ImageHere>` are used.
        frame: `model.prompt_template` or `Template.caption_prompt`, with one `{}` for the line.

    Raises:
        ConfigError: no line has a placeholder, one has several, or `{}` is not there once.
    """
    # Checked before any training: a wrong prompt would only show in the answers, hours later.
    if frame.count("{}") != 1:
        raise ConfigError(
            f"model.prompt_template: {frame!r} has {frame.count('{}')} times {{}}; it needs one, "
            "where the prompt goes"
        )
    prompts = [line.strip("\r\n") for line in lines if IMAGE_PLACEHOLDER in line]
    if not prompts:
        raise ConfigError(f"model.prompt_path: no line of the file has an {IMAGE_PLACEHOLDER}")
    for prompt in prompts:
        if prompt.count(IMAGE_PLACEHOLDER) > 1:
            raise ConfigError(
                f"model.prompt_path: more than one {IMAGE_PLACEHOLDER} in the line {prompt!r}"
            )
    return [frame.replace("{}", prompt) for prompt in prompts]


def as_pieces(question: QuestionText) -> Sequence[Piece]:
    """Split a text into pieces, with a placeholder for every `<ImageHere>`; keep given pieces."""
    if not isinstance(question, str):
        return question
    pieces = _split(question, IMAGE_PLACEHOLDER, [_placeholder(1)])
    # Empty text between two placeholders would be harmless, but there are many of them.
    return [piece for piece in pieces if piece.text]


def _split(text: str, mark: str, between: Sequence[Piece]) -> list[Piece]:
    """Return the text with pieces in the place of every mark."""
    first, *rest = text.split(mark)
    return [Piece(first), *(piece for part in rest for piece in (*between, Piece(part)))]


def render(pieces: Sequence[Piece]) -> str:
    """Join the pieces to one text for people to read."""
    return "".join(piece.text * piece.count for piece in pieces)


def encode_all(pieces: Sequence[Piece], tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """Return the ids of every piece; text between two special tokens is tokenised as a whole."""
    # Grouped, because the tokens of a text depend on what stands beside it.
    groups: list[list[int]] = []
    for special, run in groupby(pieces, key=lambda piece: piece.special):
        if not special:
            groups += encode_pieces(tokenizer, [piece.text for piece in run])
            continue
        for piece in run:
            token_id = tokenizer.backend_tokenizer.token_to_id(piece.text)
            if token_id is None:
                raise ValueError(
                    f"the tokenizer has no special token {piece.text}; make it with load_tokenizer"
                )
            groups.append([token_id] * piece.count)
    return groups


def _marked(item: Media) -> list[Piece]:
    before, after = MARKS[item.kind]
    pieces = [Piece(before), _placeholder(item.num_tokens), Piece(after)]
    return [piece for piece in pieces if piece.text]


def _placeholder(count: int) -> Piece:
    return Piece(IMAGE_PLACEHOLDER, special=True, count=count)
