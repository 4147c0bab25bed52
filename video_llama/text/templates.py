"""Write conversations and captions as each family of language models was trained to read them.

The only place that knows how the language models are prompted. Torch-free.

A conversation is a list of typed pieces: text, media placeholders, special tokens. What a user or a
data set wrote only ever becomes text, so nothing in it can act as a mark. Training text, loss mask
and chat prompts are made from the same pieces by the same functions: a chat prompt is, token for
token, the beginning of the training text of the same conversation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import TYPE_CHECKING

from video_llama.common.registry import Registry
from video_llama.text.questions import (
    Media,
    Piece,
    QuestionText,
    as_pieces,
    encode_all,
    media_question,
    render,
)
from video_llama.text.tokenizer import clean_text, encode_pieces
from video_llama.types import IGNORE_INDEX, ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


STAGE_1_END_SYM = "\n"
"""What ends a caption of stage 1, in every family."""

MAX_LENGTH = 512
"""Longest training conversation of the original, in tokens."""


@dataclass(frozen=True)
class Turn:
    """A question of a chat with the media that came with it, and its answer once there is one."""

    question: str
    media: tuple[Media, ...] = ()
    answer: str | None = None


@dataclass(frozen=True)
class Encoded:
    """A training conversation.

    Attributes:
        text: what was encoded, without BOS; an answer that was cut is still whole here.
        input_ids: L token ids, BOS first.
        labels: L labels, IGNORE_INDEX where there is no loss.
    """

    text: str
    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True, kw_only=True)
class Template:
    """How a family of language models is prompted.

    Attributes:
        name: its name in a YAML.
        default_system: the system text that it was trained with.
        opening: before the first question; `{system}` stands for the system text.
        reopening: before every later question.
        before_answer: between question and answer.
        after_answer: after an answer, which itself is always led by a space.
        end: after the last answer.
        marks: regular expression for the places where a space breaks a mark that is plain text.
        stop_texts: texts that end an answer.
        caption_prompt: prompt of the stage-2 captions, `{}` stands for a line of the prompt file.
        caption_end: what ends a stage-2 caption.
    """

    name: str
    default_system: str
    opening: tuple[Piece, ...]
    reopening: tuple[Piece, ...]
    before_answer: tuple[Piece, ...]
    after_answer: tuple[Piece, ...]
    end: tuple[Piece, ...]
    marks: str
    stop_texts: tuple[str, ...]
    caption_prompt: str
    caption_end: str

    def encode(
        self,
        turns: Sequence[tuple[QuestionText, str]],
        tokenizer: PreTrainedTokenizerFast,
        max_length: int = MAX_LENGTH,
        *,
        system: str | None = None,
    ) -> Encoded:
        """Encode a training conversation: text, ids and labels in one pass.

        A conversation that is too long loses its last turns; where a question still leaves room,
        the tail of its answer is cut instead (and with it the end mark, so that stopping in
        mid-sentence is not learnt). Questions and placeholders are never cut.

        Args:
            turns: questions and answers, at least one.
            tokenizer: made by `load_tokenizer`.
            system: system text; None is the one of the original's training.

        Raises:
            ConfigError: the first question, or a question with media, does not fit.
            ValueError: there are no turns.
        """
        if not turns:
            raise ValueError("a training conversation needs at least one question and answer")
        pieces, groups, starts = self._encode_turns(turns, tokenizer, system)
        # A turn is of use while at least one token of its answer is left.
        kept = sum(start < max_length for start in starts)
        if kept < len(turns):
            self._check_fit(turns, starts, kept, max_length)
            # Anew and not cut: the last answer that stays gets the end of a conversation.
            pieces, groups, _ = self._encode_turns(turns[:kept], tokenizer, system)
        # Ids and labels in one pass over the same pieces, so that they cannot get out of step.
        ids, labels = [tokenizer.bos_token_id], [IGNORE_INDEX]
        for piece, group in zip(pieces, groups, strict=True):
            ids += group
            labels += group if piece.supervised else [IGNORE_INDEX] * len(group)
        return Encoded(render(pieces), ids[:max_length], labels[:max_length])

    def chat_ids(
        self,
        turns: Sequence[Turn],
        tokenizer: PreTrainedTokenizerFast,
        *,
        system: str | None = None,
    ) -> list[int]:
        """Return the prompt of a chat whose last question is open, BOS first.

        Media become runs of the placeholder id, in the order in which they are listed. The ids of a
        later turn begin with all the ids of an earlier one, so that a key-value cache stays valid.

        Args:
            turns: the answered questions and last the open one.
            tokenizer: made by `load_tokenizer`.
            system: system text; None is the one of the original's training.

        Raises:
            ValueError: not exactly the last turn is open.
        """
        groups = encode_all(self._chat_pieces(turns, system), tokenizer)
        return [tokenizer.bos_token_id, *chain.from_iterable(groups)]

    def chat_text(self, turns: Sequence[Turn], *, system: str | None = None) -> str:
        """Return the text of `chat_ids`, for people to read."""
        return render(self._chat_pieces(turns, system))

    def stop_ids(self, tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
        """Return the id sequences that end an answer, in every form that a stop text takes."""
        # A stop text has other ids at the start of a text, after a line break and after a word.
        found = [[tokenizer.eos_token_id]]
        for text in self.stop_texts:
            if text in tokenizer.all_special_tokens:
                continue
            found += [encode_pieces(tokenizer, [before, text])[1] for before in ("", "\n", "a")]
        return [ids for index, ids in enumerate(found) if ids not in found[:index]]

    def clean_answer(self, text: str) -> str:
        """Cut an answer at the stop mark, drop a role name and strip it, as the user sees it."""
        for stop in self.stop_texts:
            text = text.split(stop, 1)[0]
        # Models now and then begin with the name of the role that they answer in.
        return re.split("Assistant:|ASSISTANT:", text)[-1].strip()

    def _encode_turns(
        self,
        turns: Sequence[tuple[QuestionText, str]],
        tokenizer: PreTrainedTokenizerFast,
        system: str | None,
    ) -> tuple[list[Piece], list[list[int]], list[int]]:
        """Return the pieces, their ids, and the position at which each answer starts."""
        # All turns are tokenised together, as in the chat's prompt, which must have the same ids.
        pieces, answers = self._pieces(turns, system)
        pieces += self.end
        groups = encode_all(pieces, tokenizer)
        ends = list(accumulate(map(len, groups), initial=1))
        return pieces, groups, [ends[index] for index in answers]

    def _check_fit(
        self,
        turns: Sequence[tuple[QuestionText, str]],
        starts: list[int],
        kept: int,
        max_length: int,
    ) -> None:
        """Refuse to drop the first question, or a question with media, to fit `max_length`."""
        # A turn with media cannot go: its media are encoded and have to be placed somewhere.
        with_media = [
            index
            for index, (question, _) in enumerate(turns)
            if any(piece.special for piece in as_pieces(question))
        ]
        needed = max(with_media, default=0)
        if needed >= kept:
            raise ConfigError(
                f"max_length: {max_length} tokens are too few for a conversation with "
                f"{starts[needed]} tokens before answer {needed + 1}, whose question cannot be "
                f"left out; raise max_length above {starts[needed]} or shorten the text"
            )

    def _chat_pieces(self, turns: Sequence[Turn], system: str | None) -> list[Piece]:
        if [turn.answer is None for turn in turns] != [False] * (len(turns) - 1) + [True]:
            raise ValueError("in a chat prompt the last question, and no other, has no answer yet")
        asked = [(media_question(turn.media, turn.question), turn.answer) for turn in turns]
        return self._pieces(asked, system)[0]

    def _pieces(
        self, turns: Sequence[tuple[QuestionText, str | None]], system: str | None
    ) -> tuple[list[Piece], list[int]]:
        """Return the pieces of a conversation, and at which of them each answer starts."""
        # The system text is user text too, and stands in the first question only.
        wrapped = self._plain(self.default_system if system is None else system)
        pieces = [
            replace(piece, text=piece.text.replace("{system}", wrapped)) for piece in self.opening
        ]
        starts: list[int] = []
        for question, answer in turns:
            if starts:
                pieces += self.reopening
            pieces += [
                piece if piece.special else Piece(self._plain(piece.text))
                for piece in as_pieces(question)
            ]
            pieces += self.before_answer
            starts.append(len(pieces))
            if answer is not None:
                pieces += [Piece(f" {self._plain(answer)}", supervised=True), *self.after_answer]
        return pieces, starts

    def _plain(self, text: str) -> str:
        """Break the marks of the template in a text: a typed `###` must not end a turn."""
        return re.sub(self.marks, " ", clean_text(text))


TEMPLATES: Registry[Template] = Registry("template")

VICUNA = Template(
    name="vicuna",
    default_system="",
    # The first two signs of a human turn are what the model has to say in order to stop.
    opening=(Piece("{system}\n\n"), Piece("###", supervised=True), Piece("Human: ")),
    reopening=(Piece("###", supervised=True), Piece("Human: ")),
    before_answer=(Piece("\n"), Piece("###Assistant:", supervised=True)),
    after_answer=(Piece("\n", supervised=True),),
    end=(Piece("###", supervised=True),),
    # Every place inside three number signs: "###" is written as "# # #".
    marks="(?<=##)(?=#)|(?<=#)(?=##)",
    stop_texts=("###", "</s>"),
    caption_prompt="###Human: {} ###Assistant: ",
    caption_end="###",
)

LLAMA_V2 = Template(
    name="llama_v2",
    default_system=" ",
    opening=(Piece("[INST] <<SYS>>\n{system}\n<</SYS>>\n\n"),),
    reopening=(Piece("<s>", special=True), Piece("[INST] ")),
    before_answer=(Piece(" [/INST]"),),
    after_answer=(Piece(" ", supervised=True), Piece("</s>", supervised=True, special=True)),
    end=(),
    # Before and after the word of each mark: "[INST]" is written as "[ INST ]".
    marks=(
        r"(?<=\[)(?=/?INST\])|(?<=\[INST)(?=\])|(?<=\[/INST)(?=\])"
        "|(?<=<<)(?=/?SYS>>)|(?<=<<SYS)(?=>>)|(?<=<</SYS)(?=>>)"
    ),
    stop_texts=("</s>",),
    caption_prompt="[INST] <<SYS>>\n \n<</SYS>>\n\n{} [/INST] ",
    caption_end="</s>",
)

for template in (VICUNA, LLAMA_V2):
    TEMPLATES.register(template.name)(template)
