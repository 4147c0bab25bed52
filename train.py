"""Train or evaluate a branch of Video-LLaMA.

    torchrun --nproc_per_node=8 train.py --cfg-path train_configs/visionbranch_stage1_pretrain.yaml
    python train.py --cfg-path X.yaml --options run.batch_size_train=8 run.resume_ckpt_path=latest

A run that is stopped by SIGTERM or Ctrl-C saves a checkpoint and says how to go on.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from video_llama.common.io import shown
from video_llama.common.threads import set_thread_defaults
from video_llama.types import LocalError, VideoLlamaError

logger = logging.getLogger("train")


def main(argv: Sequence[str] | None = None) -> int:
    """Train or evaluate.

    Args:
        argv: arguments; None: those of the process.

    Returns:
        The exit status: 0 done (also when stopped in order), 1 an error that the user can mend, 130
        interrupted before the training began.
    """
    set_thread_defaults()  # before anything imports torch
    args = parse_arguments(argv)
    rank = int(os.environ.get("RANK", "0"))
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING,
        format="%(asctime)s %(message)s" if rank == 0 else f"%(asctime)s rank {rank}: %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    try:
        return run(args)
    except VideoLlamaError as error:
        # Errors common to all ranks are printed by rank 0, a rank-local one by its rank.
        if rank == 0 or isinstance(error, LocalError):
            message = shown(str(error), keep="\n")
            print(f"train.py: error: {message}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:  # the training itself takes the signal and saves
        if rank == 0:
            print("\ntrain.py: interrupted", file=sys.stderr, flush=True)
        return 130
    except RuntimeError as error:
        from video_llama.runners.distributed import is_lost_peer

        if not is_lost_peer(error):
            raise
        logger.warning("ending because another process has ended")
        return 1


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Train or evaluate a branch of Video-LLaMA.")
    parser.add_argument("--cfg-path", required=True, type=Path, help="the YAML of the run")
    parser.add_argument(
        "--options",
        nargs="+",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="settings that replace those of the YAML",
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    """Build the run and carry it out; torch is imported only after the first checks."""
    from video_llama.apps.doctor import check_paths
    from video_llama.config.load import load_config
    from video_llama.config.schema import check_trainable

    cfg = load_config(args.cfg_path, args.options)
    check_trainable(cfg)
    check_paths(cfg)
    from video_llama.config.build_run import build_runner

    runner = build_runner(cfg, name=args.cfg_path.stem)
    state = runner.state
    logger.info("results go to %s", state.folder)
    if cfg.run.evaluate:
        runner.evaluate_all()
    elif runner.train():
        if state.processes.is_main and state.checkpoint is not None:
            branch = state.checkpoint / "branch.safetensors"
            logger.info("finished at step %d with a loss of %.4f", state.step, state.loss)
            logger.info("the trained branch is %s; ask it something with", branch)
            print(ask_command(args, branch, hears=cfg.model.trained_branch == "audio"), flush=True)
    else:
        command = resume_command(args, state.checkpoint)
        logger.info("stopped at step %d of %d; go on with", state.step, cfg.run.num_steps)
        if state.processes.is_main:
            print(command, flush=True)
    state.processes.close()
    return 0


def resume_command(args: argparse.Namespace, checkpoint: Path | None) -> str:
    """Return the command that goes on from a checkpoint, with the options of this one."""
    options = [o for o in args.options if not o.startswith("run.resume_ckpt_path=")]
    program = ["python"]
    if "LOCAL_WORLD_SIZE" in os.environ:
        nodes, processes = os.environ.get("GROUP_WORLD_SIZE", "1"), os.environ["LOCAL_WORLD_SIZE"]
        program = ["torchrun", *([] if nodes == "1" else [f"--nnodes={nodes}"])]
        program.append(f"--nproc_per_node={processes}")
    resume = f"run.resume_ckpt_path={checkpoint}"
    words = [*program, sys.argv[0], "--cfg-path", str(args.cfg_path), "--options", *options, resume]
    return shlex.join(words)


def ask_command(args: argparse.Namespace, branch: Path, *, hears: bool) -> str:
    """Return the command that asks a trained branch something, with the model of this run."""
    key, question = ("ckpt_2", "What do you hear?") if hears else ("ckpt", "What happens?")
    # All options of this run: what they change may be needed to read the YAML at all.
    replaced = (f"model.{key}=", "run.resume_ckpt_path=")
    options = [option for option in args.options if not option.startswith(replaced)]
    words = ["video-llama", "ask", "clip.mp4", question, "--cfg-path", str(args.cfg_path)]
    return shlex.join([*words, "--options", *options, f"model.{key}={branch}"])


def leave(status: int) -> NoReturn:
    """End this process of several at once, without shutting the interpreter down.

    Where torch destroys a process group, its threads may wait for the interpreter's lock while the
    interpreter waits for them. Processes that were done, or had failed, would hang now and then,
    and torchrun would wait for them.
    """
    try:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:  # also where the output goes to a disk that is full or read-only
        os._exit(status)


def fail(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Show an error that nothing has caught, and leave."""
    try:
        # To the real stderr: torch's own hook calls this one with another in its place.
        traceback.print_exception(kind, error, trace, file=sys.__stderr__)
    finally:
        leave(1)


if __name__ == "__main__":
    if "LOCAL_RANK" in os.environ:
        sys.excepthook = fail
        leave(main())
    sys.exit(main())
