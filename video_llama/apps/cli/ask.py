"""`video-llama ask` and `video-llama chat`: the engine in a terminal.

Torch is imported, and the model loaded, once everything else has been checked.
"""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_llama.apps.cli.options import answer_options
from video_llama.apps.doctor import check_paths
from video_llama.common.io import check_file, one_line, shown, without_controls
from video_llama.config.load import load_config
from video_llama.config.schema import Config
from video_llama.models.generation.settings import generation_settings
from video_llama.types import RequestError, VideoLlamaError

if TYPE_CHECKING:
    from video_llama.chat.engine import Chat
    from video_llama.chat.media import MediaItem
    from video_llama.chat.session import Session

HELP = """\
Type a question and press Enter. Commands:
  /add FILE   show the model another clip, picture or sound
  /media      list what it has seen and heard
  /again      another answer to the last question
  /undo       take back the last question
  /restart    forget the conversation and the files
  /help       this list
  /quit       leave (or Ctrl-D); Ctrl-C stops an answer
A question that begins with / needs a space before it."""


def ask(args: Namespace) -> int:
    """Answer one question; the last of `args.inputs` is the question, the others are files."""
    # As people type it: files by completion, the question last.
    *files, question = args.inputs
    _check_request(files, question)
    # `--json` reports loading apart from the answer.
    start = time.perf_counter()
    engine = _engine(args, files, in_worker=False)
    loaded = time.perf_counter() - start
    session = engine.start()
    for file in files:
        _add(session, file, args)
    # One answer does not make up for the compiler's half a minute.
    options = answer_options(args) | {"compiled": bool(args.compiled)}
    pieces = session.ask(question, **options)
    if args.json:
        answer = "".join(pieces)
        print(json.dumps(_details(session, answer, loaded), ensure_ascii=False, indent=2))
        return 0
    print_model(engine)
    print_notes(engine.notices)
    _print_answer(pieces)
    print_notes(notice for notice in session.report.notices if notice not in engine.notices)
    return 0


def chat(args: Namespace) -> int:
    """Converse until the user leaves."""
    engine = _engine(args, args.inputs, in_worker=True)
    print_model(engine)
    terminal = _Terminal(engine, args)
    if sys.stdin.isatty():
        print(HELP)
    terminal.restart(args.inputs)
    for line in _lines():
        if line.strip() in ("/quit", "/exit"):
            break
        try:
            terminal.do(line)
        except VideoLlamaError as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
    return 0


class _Terminal:
    """A conversation that lines of text drive."""

    def __init__(self, engine: Chat, args: Namespace) -> None:
        self._engine = engine
        self._args = args
        self._noted: set[str] = set()
        self._session = engine.start()

    def restart(self, files: Iterable[str] = ()) -> None:
        """Start a new conversation about some files."""
        self._session.close()
        self._session = self._engine.start()
        for file in files:
            self._add(file)

    def do(self, line: str) -> None:
        """Do what one line says: a command or, where it begins with no slash, a question."""
        command, _, rest = line.partition(" ")
        if not line.startswith("/"):
            if line.strip():
                self._print(partial(self._session.ask, line.strip()))
        elif command == "/add":
            self._add(rest)
        elif command == "/media":
            print("\n".join(map(_described, self._session.media)) or "nothing yet: /add FILE")
        elif command == "/again":
            self._print(self._session.regenerate)
        elif command == "/undo":
            print(f"taken back: {shown(self._session.undo())}")
        elif command == "/restart":
            self.restart()
            print("the conversation and the files are forgotten")
        elif command == "/help":
            print(HELP)
        else:
            raise RequestError(f"there is no command {command}; /help lists them")

    def _print(self, ask: Callable[..., Iterable[str]]) -> None:
        try:
            _print_answer(ask(**answer_options(self._args)))
        except KeyboardInterrupt:  # stop this answer, not the chat
            print()
        self._note(self._session.report.notices)

    def _add(self, name: str) -> None:
        """Add a file to the conversation, and say what was found in it."""
        # A file dropped on a terminal arrives quoted.
        file = name.strip().strip("'\"")
        if not file:
            raise RequestError("/add needs the name of a file: /add clip.mp4")
        try:
            path = Path(file).expanduser()
        except RuntimeError as error:
            raise RequestError(f"{file}: there is no user of that name") from error
        item = _add(self._session, str(path), self._args)
        print(_described(item))
        if item.notice:
            self._noted.discard(item.notice)
            self._note([item.notice])

    def _note(self, notices: list[str]) -> None:
        """Show what has not been shown yet."""
        print_notes(notice for notice in notices if notice not in self._noted)
        self._noted.update(notices)


def _lines() -> Iterator[str]:
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return


def _check_request(files: list[str], question: str) -> None:
    """Find a forgotten file or question before the model is loaded."""
    if _is_file(question):
        raise RequestError(
            f'the last argument is the question, but {question} is a file: ask {question} "..."'
        )
    if not files:
        raise RequestError(
            f"one argument given ({question[:80]!r}), a file and a question expected: "
            'ask clip.mp4 "..."'
        )
    if not question.strip():
        raise RequestError("the question is empty")


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a name, or with a NUL: a text
        return False


def _engine(args: Namespace, files: Iterable[str], *, in_worker: bool) -> Chat:
    """Load the model of the command, after what can be checked without it.

    A conversation decodes in a worker process, which a bad file may end. One question about one
    file would only wait for that process to start.
    """
    for file in files:
        check_file(file)
    cfg = config_of(args)
    generation_settings(answer_options(args))
    start = time.perf_counter()
    _print_state("loading the libraries ...")
    from video_llama.processors.media import probe
    from video_llama.processors.worker import decode_in_worker

    for file in files:
        _ = decode_in_worker(probe, file) if in_worker else probe(file)
    _print_state("loading the model ...")
    engine = load_chat(cfg, in_worker=in_worker)
    _print_state(f"ready after {time.perf_counter() - start:.1f} s\n")
    return engine


def config_of(args: Namespace, *overrides: str) -> Config:
    """Load the configuration of a command, and check before torch is imported that files are there.

    Args:
        args: with the options `MODEL`.
        overrides: of other options; those of `--options` win over them.
    """
    cfg = load_config(args.cfg_path, [*overrides, *args.options], weights=args.weights)
    check_paths(cfg)
    return cfg


def load_chat(cfg: Config, *, in_worker: bool = True) -> Chat:
    """Load a model for answers; its worker process for decoding starts meanwhile."""
    from video_llama.chat.engine import Chat
    from video_llama.config.build import build_model
    from video_llama.processors.worker import start_decoding

    if in_worker:
        start_decoding()
    return Chat(build_model(cfg, audio_on_demand=True), in_worker=in_worker)


def print_model(chat: Chat) -> None:
    """Say which model answers."""
    from video_llama.apps.banner import model_line

    print_notes(filter(None, [model_line(chat.model)]))


def print_notes(notices: Iterable[str]) -> None:
    """Print notices beside the answers."""
    for notice in notices:
        print(f"note: {shown(notice)}", file=sys.stderr)


def _print_state(text: str) -> None:
    """Say in the place of what was said before what a slow start does; to people, not to files."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _add(session: Session, file: str, args: Namespace) -> MediaItem:
    return session.add(
        file, use_audio=not args.no_audio, num_frames=args.num_frames, num_clips=args.num_clips
    )


def _print_answer(pieces: Iterable[str]) -> None:
    for piece in pieces:
        print(without_controls(piece), end="", flush=True)
    print()


def _described(item: MediaItem) -> str:
    """Describe in one line what the model sees and hears of a file."""
    details = []
    if item.frames is not None and item.kind == "video":
        details.append(f"{item.frames.shape[1]} frames")
    if item.has_sound is not None:
        details.append("with sound" if item.sound_used else "without sound")
    return f"{item.kind}: {shown(str(item.path))}" + (f" ({', '.join(details)})" if details else "")


def _details(session: Session, answer: str, loaded: float) -> dict[str, Any]:
    """Return what `--json` prints."""
    report = session.report
    first, generated = (report.timings[name] for name in ("first_token", "generate"))
    media = [
        {
            "path": str(item.path),
            "kind": item.kind,
            "frames": 0 if item.frames is None else item.frames.shape[1],
            "frame_seconds": item.frame_seconds,
            "sound_present": item.has_sound,
            "sound_used": item.sound_used,
            "sound_seconds": [[round(second, 4) for second in span] for span in item.sound_spans]
            if item.sound_used
            else [],
            "num_tokens": item.num_tokens,
            "timings": _rounded(item.timings),
        }
        for item in session.media
    ]
    return {
        "answer": answer,
        "prompt": report.prompt,
        "media": media,
        "num_prompt_tokens": report.num_prompt_tokens,
        "num_answer_tokens": report.num_tokens,
        "finished": report.finished,
        "timings": _rounded({"load": loaded, "first_token": first, "generate": generated}),
        "notices": report.notices,
    }


def _rounded(timings: dict[str, float]) -> dict[str, float]:
    return {stage: round(seconds, 4) for stage, seconds in timings.items()}
