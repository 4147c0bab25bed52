"""`video-llama batch`: questions of a JSONL file, answers to another one.

Torch is imported, and the model loaded, once everything else has been checked and something is left
to do.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from video_llama.apps.cli.ask import answer_options
from video_llama.apps.doctor.paths import check_paths
from video_llama.chat.requests import BatchRequest, RequestDefaults, read_requests
from video_llama.common.io import default_config_path, one_line
from video_llama.config.load import load_config
from video_llama.models.generation.settings import generation_settings
from video_llama.types import RequestError

if TYPE_CHECKING:
    from video_llama.chat.batch import BatchAnswer

_WINDOW = 4
"""Batches that are read ahead, so that prompts of similar length can be answered together."""


def batch(args: Namespace) -> int:
    """Answer what `args.target` does not have yet of `args.source`, in the order of its lines."""
    source, target = Path(args.source), Path(args.target)
    requests = read_requests(source, _defaults(args, source))
    generation_settings(answer_options(args))
    if args.batch_size < 1:
        raise RequestError(f"--batch-size: {args.batch_size} given, at least 1 expected")
    with _opened(target, source, overwrite=args.overwrite) as file:
        done = _answered(file, target, source, requests)
        failed = 0
        if done:
            print(f"{target}: {done} of {len(requests)} are answered already", file=sys.stderr)
        if done < len(requests):
            failed = _answer(args, requests[done:], file)
    if failed:
        print(f"{failed} of {len(requests) - done} could not be answered", file=sys.stderr)
    print(target)
    return 0


def _defaults(args: Namespace, source: Path) -> RequestDefaults:
    return RequestDefaults(
        media_dir=Path(args.media_dir) if args.media_dir else source.parent,
        use_audio=not args.no_audio,
        num_frames=args.num_frames,
        num_clips=args.num_clips,
        options=answer_options(args),
    )


@contextmanager
def _opened(target: Path, source: Path, *, overwrite: bool) -> Iterator[IO[bytes]]:
    """The output, which nobody else writes at the same time."""
    try:
        if target.exists() and target.samefile(source):
            raise RequestError(
                f"{target}: it holds the questions; name another file for the answers"
            )
        if target.exists() and not (target.is_file() or target.is_dir()):
            raise RequestError(f"{target}: it is a device or a pipe, a file was expected")
        file = target.open("a+b")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise RequestError(f"{target}: cannot be written: {reason}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RequestError(f"{target}: another `video-llama batch` writes it") from error
        if overwrite:
            file.truncate(0)
        yield file


def _answered(file: IO[bytes], target: Path, source: Path, requests: Sequence[BatchRequest]) -> int:
    """How many requests the output has answers to; a line that was cut short is taken away."""
    file.seek(0)
    *lines, torn = file.read().split(b"\n")
    if len(lines) > len(requests):
        raise RequestError(
            f"{target}: it has {len(lines)} lines, but {source} only {len(requests)}: it belongs "
            "to other questions; name another file, or say --overwrite"
        )
    fits = [_is_answer(*pair) for pair in zip(lines, requests, strict=False)]
    fits += [_is_begun(torn, requests[len(lines) :])]
    if not all(fits):
        raise RequestError(
            f"{target}: line {fits.index(False) + 1} is no answer to that question of {source}; "
            "name another file, or say --overwrite"
        )
    file.truncate(sum(len(line) + 1 for line in lines))
    return len(lines)


def _is_answer(line: bytes, request: BatchRequest) -> bool:
    """Whether a line of the output answers a request; one without a mark is trusted."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return (
        isinstance(entry, dict)
        and entry.items() >= _head(request).items()
        and entry.get("request", request.mark) == request.mark
        and ("answer" in entry or "error" in entry)
    )


def _is_begun(torn: bytes, left: Sequence[BatchRequest]) -> bool:
    """Whether what stands after the last whole line is the beginning of the next answer."""
    if not torn or not left:
        return not torn
    head = json.dumps(_head(left[0]))[:-1].encode()
    return head.startswith(torn) or torn.startswith(head)


def _head(request: BatchRequest) -> dict[str, Any]:
    """What the line of an answer begins with."""
    return {"id": request.request_id, "question": request.question}


def _answer(args: Namespace, requests: Sequence[BatchRequest], file: IO[bytes]) -> int:
    cfg = load_config(args.cfg_path or default_config_path(), args.options)
    check_paths(cfg)
    from tqdm import tqdm

    from video_llama.chat.batch import BatchAnswerer
    from video_llama.chat.engine import Chat
    from video_llama.config.build import build_model

    chat = Chat(build_model(cfg, audio_on_demand=True))
    for notice in chat.notices:
        print(f"note: {one_line(notice)}", file=sys.stderr)
    answerer, failed = BatchAnswerer(chat, batch_size=args.batch_size), 0
    window = _WINDOW * args.batch_size
    with tqdm(total=len(requests), unit="question", disable=not args.progress) as bar:
        for start in range(0, len(requests), window):
            answers = answerer.answer(requests[start : start + window])
            # One write of whole lines, on the disk before the next ones are worked on.
            file.write("".join(map(_line, answers)).encode())
            file.flush()
            os.fsync(file.fileno())
            failed += sum(answer.answer is None for answer in answers)
            bar.update(len(answers))
    return failed


def _line(answer: BatchAnswer) -> str:
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
    return json.dumps(content | {"request": request.mark}) + "\n"
