"""`video-llama batch`: questions of a JSONL file, answers to another one.

Line n of the output belongs to question n. Torch is imported, and the model loaded, once everything
else has been checked and something is left to do.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from video_llama.apps.cli.ask import config_of, load_chat, print_model, print_notes
from video_llama.apps.cli.options import answer_options
from video_llama.chat.requests import BatchRequest, RequestDefaults, read_requests
from video_llama.common.io import one_line
from video_llama.models.generation.settings import generation_settings
from video_llama.types import RequestError

if TYPE_CHECKING:
    from video_llama.chat.batch import BatchAnswer, BatchAnswerer

_WINDOW = 4
"""Batches that are taken together, so that prompts of similar length can be answered together."""

_LISTED_REASONS = 5


def batch(args: Namespace) -> int:
    """Answer what `args.target` has no answers to yet, in the order of the lines of `args.source`.

    Returns:
        1 if a question could not be answered, else 0.
    """
    source, target = Path(args.source), Path(args.target)
    # What can be wrong with the call is found before the model is loaded.
    requests = read_requests(source, _defaults(args, source))
    generation_settings(answer_options(args))
    if args.batch_size < 1:
        raise RequestError(f"--batch-size: {args.batch_size} given, at least 1 expected")
    with _Output.opened(target, source, overwrite=args.overwrite) as output:
        # Lines of an earlier run are kept as they are, errors are tried again.
        output.read(requests)
        done, failed = len(output.lines) - len(output.failed), output.failed
        if done:
            print(f"{target}: {done} of {len(requests)} are answered already", file=sys.stderr)
        if failed:
            print(f"{target}: {len(failed)} failed before and are tried again", file=sys.stderr)
        reasons: Counter[str] = Counter()
        if done < len(requests):
            reasons = _answer(args, requests, output)
    for reason, count in reasons.most_common(_LISTED_REASONS):
        print(f"failed ({count}): {reason}", file=sys.stderr)
    if reasons:
        total = len(requests) - done
        print(f"{reasons.total()} of {total} could not be answered", file=sys.stderr)
    print(target)
    return 1 if reasons else 0


def _defaults(args: Namespace, source: Path) -> RequestDefaults:
    return RequestDefaults(
        media_dir=Path(args.media_dir) if args.media_dir else source.parent,
        use_audio=not args.no_audio,
        num_frames=args.num_frames,
        num_clips=args.num_clips,
        options=answer_options(args),
    )


@dataclass
class _Output:
    """The file of answers, which nobody else writes at the same time.

    Attributes:
        file: open, locked, for appending.
        lines: that it holds.
        failed: which of them are errors.
    """

    target: Path
    source: Path
    file: IO[bytes]
    lines: list[bytes]
    failed: list[int]

    @classmethod
    @contextmanager
    def opened(cls, target: Path, source: Path, *, overwrite: bool) -> Iterator[_Output]:
        """Open the output, or refuse what cannot be one."""
        try:
            if target.exists() and target.samefile(source):
                problem = "it holds the questions; name another file for the answers"
                raise RequestError(f"{target}: {problem}")
            if target.exists() and not (target.is_file() or target.is_dir()):
                raise RequestError(f"{target}: it is a device or a pipe, a file was expected")
            file = target.open("a+b")
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise RequestError(f"{target}: cannot be written: {reason}") from error
        output = cls(target, source, file, [], [])
        try:
            output._lock()
            if overwrite:
                file.truncate(0)
            yield output
        finally:
            output.file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RequestError(f"{self.target}: another `video-llama batch` writes it") from error

    def read(self, requests: Sequence[BatchRequest]) -> None:
        """Find what is answered already; a line that was cut short is taken away.

        Raises:
            RequestError: a line is no answer to its question.
        """
        self.file.seek(0)
        # A run that was killed leaves at most one line without its end.
        *lines, torn = self.file.read().split(b"\n")
        # The last line that fits is no proof: a longer file is of other questions.
        if len(lines) > len(requests):
            raise RequestError(
                f"{self.target}: it has {len(lines)} lines, but {self.source} only "
                f"{len(requests)}: it belongs to other questions; name another file, or say "
                "--overwrite"
            )
        # Every line is checked: mixing answers of two files of questions would go unnoticed.
        entries = [_entry(*pair) for pair in zip(lines, requests, strict=False)]
        fits = [entry is not None for entry in entries]
        fits += [_is_begun(torn, requests[len(lines) :])]
        if not all(fits):
            raise RequestError(
                f"{self.target}: line {fits.index(False) + 1} is no answer to that question of "
                f"{self.source}; name another file, or say --overwrite"
            )
        self.file.truncate(sum(len(line) + 1 for line in lines))
        self.lines = lines
        self.failed = [n for n, entry in enumerate(entries) if entry and "answer" not in entry]

    def append(self, answers: Sequence[BatchAnswer]) -> None:
        """Write whole lines at once, on the disk before the next ones are worked on."""
        self._write(_line(answer) for answer in answers)

    def _write(self, lines: Iterable[bytes]) -> None:
        self.file.write(b"".join(line + b"\n" for line in lines))
        self.file.flush()
        os.fsync(self.file.fileno())

    def replace(self, answers: dict[int, BatchAnswer]) -> None:
        """Write the file anew with other answers at some of its lines.

        A crash leaves the old file or the new one. The new one is locked before it has the name.
        """
        for number, answer in answers.items():
            self.lines[number] = _line(answer)
        path = self.target.resolve()
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with self.file:  # closed at the end, when the new one is in its place
            self.file = temporary.open("a+b")
            try:
                self._lock()
                self._write(self.lines)
                shutil.copymode(path, temporary)
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise


def _entry(line: bytes, request: BatchRequest) -> dict[str, Any] | None:
    """Read a line of the output; None unless it belongs to a request. No mark is trusted."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    fits = (
        isinstance(entry, dict)
        and entry.items() >= _head(request).items()
        and entry.get("request", request.mark) == request.mark
        and ("answer" in entry or "error" in entry)
    )
    return entry if fits else None


def _is_begun(torn: bytes, left: Sequence[BatchRequest]) -> bool:
    """Check that what stands after the last whole line is the beginning of the next answer."""
    if not torn or not left:
        return not torn
    head = json.dumps(_head(left[0]))[:-1].encode()
    return head.startswith(torn) or torn.startswith(head)


def _head(request: BatchRequest) -> dict[str, Any]:
    """Make what the line of an answer begins with."""
    return {"id": request.request_id, "question": request.question}


def _answer(args: Namespace, requests: Sequence[BatchRequest], output: _Output) -> Counter[str]:
    """Answer what is left; returns how often each reason kept a question from it."""
    cfg = config_of(args)
    from tqdm import tqdm

    reasons: Counter[str] = Counter()
    # Small enough that an interrupt costs a minute, large enough for batches of one length.
    window, first = _WINDOW * args.batch_size, len(output.lines)
    # Failed ones first, because each round of them rewrites the file, which then is shortest.
    left = [output.failed, list(range(first, len(requests)))]
    wrong = all(requests[number].error for numbers in left for number in numbers)
    answer = _refuse if wrong else _answerer(args, cfg).answer
    with tqdm(total=sum(map(len, left)), unit="question", disable=args.no_progress) as bar:
        for numbers in left:
            for start in range(0, len(numbers), window):
                chosen = numbers[start : start + window]
                answers = answer([requests[number] for number in chosen])
                if numbers is output.failed:
                    output.replace(dict(zip(chosen, answers, strict=True)))
                else:
                    output.append(answers)
                reasons.update(one_line(a.error) for a in answers if a.answer is None)
                bar.update(len(answers))
    return reasons


def _refuse(requests: Sequence[BatchRequest]) -> list[BatchAnswer]:
    """Say of requests that no model can answer what is wrong with them."""
    from video_llama.chat.batch import BatchAnswer

    return [BatchAnswer(request, error=request.error) for request in requests]


def _answerer(args: Namespace, cfg: Any) -> BatchAnswerer:
    from video_llama.chat.batch import BatchAnswerer

    chat = load_chat(cfg)
    print_model(chat)
    print_notes(map(one_line, chat.notices))
    return BatchAnswerer(chat, batch_size=args.batch_size)


def _line(answer: BatchAnswer) -> bytes:
    request = answer.request
    content = _head(request)
    if answer.answer is None:
        content["error"] = one_line(answer.error)
    else:
        content |= {
            "answer": answer.answer,
            "finished": answer.finished,
            "num_prompt_tokens": answer.num_prompt_tokens,
            "num_answer_tokens": answer.num_tokens,
            "notices": answer.notices,
        }
    return json.dumps(content | {"request": request.mark}).encode()
