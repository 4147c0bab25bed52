"""The chat with its cache kept, against the original's way: the whole context again at each turn.

    python -m benchmarks.bench_chat                    # ten turns, then ten sessions at once
    python -m benchmarks.bench_chat --width 1024 --layers 16

Both arms are our engine on one model with random weights; media are encoded once in both. The
reference arm forgets its keys and values before each turn, as the original does. The arms take
turns, question by question, and must give the same tokens. Seconds are of the clock, and of the
processor: other work on the machine disturbs the latter less.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.harness import Comparison, Measurement, write
from tests.media import tone, write_video
from video_llama.chat.engine import Chat
from video_llama.chat.session import Session
from video_llama.common.io import default_config_path, package_file
from video_llama.config.load import load_config
from video_llama.models.build import build_video_llama
from video_llama.models.generation.generate import AnswerText

QUESTION = "What happens in this part of the clip, who is in it and what can be heard? Part {}."


def large_chat(args: argparse.Namespace, folder: Path) -> Chat:
    """The tiny preset with a language model that is large enough to measure."""
    values = json.loads((package_file("presets/tiny/llama") / "config.json").read_text())
    values |= {
        "hidden_size": args.width,
        "intermediate_size": int(args.width * 2.75),
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.width // 64,
        "num_key_value_heads": args.width // 64,
    }
    (folder / "config.json").write_text(json.dumps(values))
    tokenizer = package_file("presets/tiny/llama") / "tokenizer.model"
    (folder / "tokenizer.model").write_bytes(tokenizer.read_bytes())
    settings = replace(
        load_config(default_config_path()).model,
        llama_model=str(folder),
        random_init=True,  # the branches of the preset are for a narrower language model
        vit_ckpt=None,
        q_former_model=None,
        imagebind_ckpt_path=None,
        ckpt=None,
        ckpt_2=None,
    )
    return Chat(build_video_llama(settings, device=args.device, seed=0))


@dataclass
class Turn:
    """One turn of one arm: seconds to the first token in each repeat, and what was said."""

    clock: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    num_prompt_tokens: int = 0
    num_computed_tokens: int = 0


def ask(session: Session, question: str, length: int, turn: Turn) -> None:
    """One answer; the time to its first token is measured, the rest is only generated."""
    tokens: list[int] = []
    first: list[tuple[float, float]] = []
    original = AnswerText.push

    def push(text: AnswerText, token: int) -> str:
        first.append((time.perf_counter(), time.process_time()))
        tokens.append(token)
        return original(text, token)

    AnswerText.push = push  # type: ignore[method-assign]
    try:
        clock, cpu = time.perf_counter(), time.process_time()
        "".join(session.ask(question, temperature=0, max_new_tokens=length))
    finally:
        AnswerText.push = original  # type: ignore[method-assign]
    turn.clock.append(first[0][0] - clock)
    turn.cpu.append(first[0][1] - cpu)
    report = session.report
    turn.num_prompt_tokens = report.num_prompt_tokens
    turn.num_computed_tokens = report.num_prompt_tokens - report.num_reused_tokens
    if turn.tokens and turn.tokens != tokens:
        raise AssertionError("a repeat gave other tokens")
    turn.tokens = tokens


def run_turns(chat: Chat, clip: Path, args: argparse.Namespace) -> list[tuple[Turn, Turn]]:
    """Both arms, question by question; ours first in each pair."""
    pairs = [(Turn(), Turn()) for _ in range(args.turns)]
    for repeat in range(args.repeats + 1):
        with chat.start(video=clip) as kept, chat.start(video=clip) as forgetful:
            for number in range(args.turns if repeat else 1):  # the first repeat warms up
                arms = list(zip((kept, forgetful), pairs[number], strict=True))
                for session, turn in arms if (repeat + number) % 2 else reversed(arms):
                    if session is forgetful:
                        session._cache.clear()
                    question = QUESTION.format(number + 1)
                    ask(session, question, args.answer_length, turn if repeat else Turn())
    for number, (ours, reference) in enumerate(pairs, start=1):
        if ours.tokens != reference.tokens:
            raise AssertionError(f"turn {number}: the arms gave different tokens")
    return pairs


def comparisons_of(pairs: list[tuple[Turn, Turn]]) -> list[Comparison]:
    """Seconds of the clock and of the processor, turn by turn."""
    found = []
    for number, (ours, reference) in enumerate(pairs, start=1):
        clock, cpu = (
            Comparison(
                f"first token, turn {number}{suffix}",
                Measurement(getattr(ours, unit), 0.0),
                Measurement(getattr(reference, unit), 0.0),
            )
            for unit, suffix in (("clock", ""), ("cpu", ", processor time"))
        )
        found += [clock, cpu]
        print(
            f"turn {number:2d}: computed {ours.num_computed_tokens:4d} of "
            f"{ours.num_prompt_tokens:4d} tokens, first token {clock.ours.median:7.3f} s against "
            f"{clock.reference.median:7.3f} s: {clock.speedup:5.1f} times (processor time "
            f"{cpu.speedup:5.1f})",
            flush=True,
        )
    return found


def many_sessions(chat: Chat, clip: Path, args: argparse.Namespace, count: int) -> dict[str, Any]:
    """So many sessions answer at once: tokens per second together, and how evenly they share."""
    sessions = [chat.start(video=clip) for _ in range(count)]
    ready, ends = threading.Barrier(count + 1), [0.0] * count

    def run(index: int) -> None:
        ready.wait()
        options = {"max_new_tokens": args.parallel_length, "min_new_tokens": args.parallel_length}
        "".join(sessions[index].ask(QUESTION.format(index), temperature=0, **options))
        ends[index] = time.perf_counter()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    start_cpu = time.process_time()
    ready.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    cpu = time.process_time() - start_cpu
    seconds = [end - start for end in ends]
    tokens = [session.report.num_tokens for session in sessions]
    speeds = [count / time_ for count, time_ in zip(tokens, seconds, strict=True)]
    memory = [session.num_bytes / 1e6 for session in sessions]
    for session in sessions:
        session.close()
    result = {
        "sessions": count,
        "tokens_per_second": sum(tokens) / max(seconds),
        "tokens_per_cpu_second": sum(tokens) / cpu,
        "first_token_seconds": [session.report.timings["first_token"] for session in sessions],
        "seconds": seconds,
        # Jain's index: 1 where all get the same, 1 / n where one gets everything.
        "fairness": sum(speeds) ** 2 / (count * sum(speed**2 for speed in speeds)),
        "memory_mb": memory,
        "memory_mb_after_close": sum(session.num_bytes for session in sessions) / 1e6,
    }
    print(
        f"{count} sessions: {result['tokens_per_second']:.1f} tokens/s together "
        f"({result['tokens_per_cpu_second']:.1f} per CPU second), fairness "
        f"{result['fairness']:.3f}, {max(memory):.1f} MB each",
        flush=True,
    )
    return result


def main() -> None:
    """Measure, print a line per turn and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--width", type=int, default=512, help="of the language model")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--answer-length", type=int, default=8, help="tokens of each answer")
    parser.add_argument("--parallel-length", type=int, default=24, help="tokens, sessions at once")
    parser.add_argument("--sessions", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    load_before = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        clip = write_video(Path(folder) / "clip.mp4", num_frames=24, sound=tone(3.0))
        chat = large_chat(args, Path(folder))
        pairs = run_turns(chat, clip, args)
        turns = comparisons_of(pairs)
        parallel = [many_sessions(chat, clip, args, count) for count in (1, args.sessions)]
    tokens = [(ours.num_prompt_tokens, ours.num_computed_tokens) for ours, _ in pairs]
    write(
        f"chat_{args.device}",
        args.device,
        [turns[1], turns[-1]],  # by the processor's time, which other work disturbs less
        turns=[asdict(turn) | {"speedup": turn.speedup, "spread": turn.spread} for turn in turns],
        settings=vars(args),
        load={"before": load_before, "after": os.getloadavg()},
        language_model_parameters=chat.model.language_model.num_parameters(),
        prompt_and_computed_tokens=tokens,
        parallel=parallel,
    )


if __name__ == "__main__":
    main()
