"""`video-llama ask` and `video-llama chat`: the engine in a terminal."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from video_llama.build import build_model
from video_llama.chat import Chat, Session
from video_llama.config import load_config
from video_llama.resources import default_config_path
from video_llama.types import RequestError, VideoLlamaError

HELP = """\
Type a question and press Enter. Commands:
  /add FILE   show the model another clip, picture or sound
  /media      list what it has seen and heard
  /restart    forget the conversation and the files
  /quit       leave (or Ctrl-D)"""


def ask(args: Namespace) -> int:
    """Answer one question; the last of `args.inputs` is the question, the others are files."""
    *files, question = args.inputs
    if not files:
        raise RequestError(
            f'one argument given ({question!r}), a file and a question expected: ask clip.mp4 "..."'
        )
    if Path(question).is_file():
        raise RequestError(
            f'the last argument is the question, but {question} is a file: ask {question} "..."'
        )
    start = time.perf_counter()
    engine = _engine(args)
    loaded = time.perf_counter() - start
    session = engine.start()
    for file in files:
        _add(session, file, args)
    pieces = session.ask(question, **_answer_options(args))
    if args.json:
        answer = "".join(pieces)
        print(json.dumps(_details(session, answer, loaded), ensure_ascii=False, indent=2))
        return 0
    _stream(session, pieces)
    return 0


def chat(args: Namespace) -> int:
    """Converse until the user leaves."""
    engine = _engine(args)
    session = engine.start()
    for file in args.files:
        _add(session, file, args)
    if sys.stdin.isatty():
        print(HELP)
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return 0
        if line in ("/quit", "/exit"):
            return 0
        try:
            session = _turn(engine, session, line, args)
        except VideoLlamaError as error:
            print(f"error: {error}", file=sys.stderr)


def _turn(engine: Chat, session: Session, line: str, args: Namespace) -> Session:
    """Do what one line says; returns the session to go on with."""
    command, _, rest = line.partition(" ")
    if command == "/restart":
        return engine.start()
    if command == "/add":
        _add(session, rest.strip(), args)
    elif command == "/media":
        for item in session.media:
            print(f"{item.kind}: {item.path}{' (with sound)' if item.sound_used else ''}")
    elif command == "/help":
        print(HELP)
    elif line:
        try:
            _stream(session, session.ask(line, **_answer_options(args)))
        except KeyboardInterrupt:  # stop this answer, not the chat
            print()
    return session


def _engine(args: Namespace) -> Chat:
    path = args.cfg_path or default_config_path()
    return Chat(build_model(load_config(path, args.options)))


def _add(session: Session, file: str, args: Namespace) -> None:
    session.add(
        file, use_audio=not args.no_audio, num_frames=args.num_frames, num_clips=args.num_clips
    )


def _answer_options(args: Namespace) -> dict[str, Any]:
    names = ("temperature", "top_p", "num_beams", "max_new_tokens", "seed")
    return {name: getattr(args, name) for name in names}


def _stream(session: Session, pieces: Any) -> None:
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    for notice in session.report.notices:
        print(f"note: {notice}", file=sys.stderr)


def _details(session: Session, answer: str, loaded: float) -> dict[str, Any]:
    """What `--json` prints."""
    report = session.report
    media = [
        {
            "path": str(item.path),
            "kind": item.kind,
            "frames": 0 if item.frames is None else item.frames.shape[1],
            "frame_seconds": item.frame_seconds,
            "sound_present": item.has_sound,
            "sound_used": item.sound_used,
            "sound_seconds": [list(span) for span in item.sound_spans],
            "num_tokens": sum(part.num_tokens for part in item.parts),
            "timings": item.timings,
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
        "timings": {"load": loaded, **report.timings},
        "notices": report.notices,
    }
