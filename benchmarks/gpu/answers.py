"""Answers on one device: loading, the first token, tokens per second, equal tokens."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import released
from video_llama.apps.page.examples import write_examples
from video_llama.chat.batch import BatchAnswerer
from video_llama.chat.engine import Chat
from video_llama.chat.requests import BatchRequest, RequestMedia
from video_llama.config.build import build_model
from video_llama.config.load import load_config

QUESTION = "What happens in this clip, and what do you hear?"


def chat_of(files: Path, size: str, device: str, *options: str) -> Chat:
    """Build the model of the files, both branches, with a chat about it."""
    chosen = [*released.overrides(files, size), f"run.device={device}", *options]
    return Chat(build_model(load_config(released.configuration(size), chosen)))


def clip_of(folder: Path) -> Path:
    """Render a clip with sound."""
    folder.mkdir(exist_ok=True)
    return next(path for path in write_examples(folder).values() if path.suffix == ".mp4")


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def peak_gb() -> float:
    """Return the largest memory of tensors on the GPU so far, GB."""
    return torch.cuda.max_memory_allocated() / 1e9


def answers(storage: str, files: Path, size: str, device: str, result: dict[str, Any]) -> None:
    """Measure a chat whose LLM is stored as bf16, int8 or nf4."""
    figures = result["figures"]
    option = "model.precision=bf16" if storage == "bf16" else f"model.quantization={storage}"
    start = time.perf_counter()
    chat = chat_of(files, size, device, option)
    synchronize(device)
    figures[f"{storage}: load, s"] = time.perf_counter() - start
    clip = clip_of(files.parent / f"clips_{storage}")
    ask = partial(_ask, chat, clip, device, length=16 if size == "tiny" else 128)
    cold, warm = ask(), ask()
    figures[f"{storage}: first token, cold, s"] = cold["first"]
    figures[f"{storage}: first token of a new clip, s"] = warm["first"]
    figures[f"{storage}: tokens/s, eager"] = warm["rate"]
    if device == "cuda":
        figures[f"{storage}: peak, GB"] = peak_gb()
    # A token reads every weight of the LLM but the word table.
    llm = chat.model.language_model
    table = sum(p.nbytes for p in llm.get_input_embeddings().parameters())
    read = sum(p.nbytes for p in llm.parameters()) - table
    result["bytes"] = {f"{storage}: tokens/s, eager": read}
    if storage == "bf16":
        result["bytes"]["bf16: tokens/s, compiled"] = read
        ask(compiled=True)
        figures["bf16: tokens/s, compiled"] = ask(compiled=True)["rate"]
        _turns(chat, clip, figures, turns=10)


def _ask(
    chat: Chat, clip: Path, device: str, *, length: int, compiled: bool = False
) -> dict[str, float]:
    """Ask about a clip in a new session; its reading and encoding count to the first token."""
    session, start = chat.start(), time.perf_counter()
    session.add(clip)
    synchronize(device)
    added = time.perf_counter() - start
    options = {"temperature": 0.0, "max_new_tokens": length, "min_new_tokens": length}
    for _ in session.ask(QUESTION, compiled=compiled, **options):
        pass
    report = session.report
    session.close()
    return {"first": added + report.timings["first_token"], "rate": report.tokens_per_second}


def _turns(chat: Chat, clip: Path, figures: dict[str, float], *, turns: int) -> None:
    """Ask on and on: the last turn's first token, with the keys and values kept and without."""
    options = {"temperature": 0.0, "max_new_tokens": 4, "min_new_tokens": 4, "compiled": False}
    for name, other in (("kept cache", chat), ("no cache", Chat(chat.model, cache_mb=0))):
        with other.start(video=clip) as session:
            for turn in range(turns):
                for _ in session.ask(f"And then, number {turn}?", **options):
                    pass
            seconds = session.report.timings["first_token"]
        figures[f"bf16: first token of turn {turns}, {name}, s"] = seconds


def greedy(files: Path, size: str, device: str, result: dict[str, Any]) -> None:
    """Compare greedy answers in fp32 between eager and compiled decoding and a batch."""
    precisions = ("precision", "vit_precision", "imagebind_precision")
    chat = chat_of(files, size, device, *(f"model.{name}=fp32" for name in precisions))
    clip = clip_of(files.parent / "clips_greedy")
    options: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 24, "min_new_tokens": 24}
    texts = {}
    for name in ("eager", "compiled"):
        session = chat.start(video=clip)
        texts[name] = "".join(session.ask(QUESTION, compiled=name == "compiled", **options))
        session.close()
    media = (RequestMedia(clip, "video"),)
    requests = [BatchRequest(index, QUESTION, media, dict(options)) for index in range(2)]
    texts["batch"] = BatchAnswerer(chat).answer(requests)[1].answer or ""
    result["texts"] = texts
    result["equal"] = len(set(texts.values())) == 1
    if not result["equal"]:
        raise AssertionError(f"greedy answers differ: {texts}")
