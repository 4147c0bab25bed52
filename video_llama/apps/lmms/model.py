"""The class that lmms-eval asks, `--model video_llama`."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import video_llama.common.compat

import accelerate
import torch
import transformers
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from loguru import logger
from tqdm import tqdm

from video_llama import __version__
from video_llama.apps.doctor import check_paths
from video_llama.apps.lmms.answers import HarnessRequest, MessageAnswerer
from video_llama.common.io import atomic_write, one_line
from video_llama.config.build import build_model
from video_llama.config.load import load_config


class VideoLlamaChat(lmms):  # type: ignore[misc]
    """Answers the chat tasks of lmms-eval; every rank answers its share of the items.

    Args:
        cfg_path: configuration of the model; None: as for the commands.
        weights: folder of the model's files, as `--weights`.
        options: overrides of the configuration, with semicolons between them.
        num_frames: of a clip; None: as configured.
        num_clips: segments of a sound; None: as configured.
        use_audio: whether clips are heard.
        details: JSON file for the configuration, versions, and the errors of items.
        batch_size: answers at once.
        device: overrides `run.device`; several ranks take a GPU each.
        max_batch_size: of lmms-eval, without effect.
    """

    is_simple = False

    def __init__(
        self,
        cfg_path: str | None = None,
        weights: str | None = None,
        options: str = "",
        num_frames: int | None = None,
        num_clips: int | None = None,
        use_audio: bool = True,
        details: str | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        overrides = [each.strip() for each in options.split(";") if each.strip()]
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            # lmms-eval gathers the results through it.
            self.accelerator = accelerate.Accelerator()
            self._rank = self.accelerator.process_index
            self._world_size = self.accelerator.num_processes
            device = str(self.accelerator.device)
        if device:
            overrides.insert(0, f"run.device={device}")
        cfg = load_config(cfg_path, overrides, weights=weights)
        check_paths(cfg)
        model = build_model(cfg, audio_on_demand=True)
        self._device = model.device
        self.answerer = MessageAnswerer(
            model,
            num_frames=num_frames,
            num_clips=num_clips,
            use_audio=use_audio,
            batch_size=int(batch_size),
        )
        self.configuration = cfg.to_yaml()
        self.errors: list[dict[str, Any]] = []
        self._details = Path(details) if details else None
        if self.rank == 0:
            # At the level that lmms-eval shows without being asked.
            for key, value in self.about().items():
                logger.warning(f"{key}: {value}")

    def about(self) -> dict[str, Any]:
        """Return what scores depend on beside the weights."""
        settings = self.answerer.model.settings
        return {
            "versions": {
                "video_llama": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
            "template": settings.template,
            "frames": self.answerer.num_frames,
            "segments of sound": self.answerer.num_clips if settings.equip_audio_branch else 0,
            "configuration": self.configuration,
        }

    @property
    def device(self) -> torch.device:
        """Where the model is; lmms-eval gathers from there."""
        return self._device

    def generate_until(self, requests: list[Any]) -> list[GenerationResult]:
        """Answer requests of lmms-eval; an item that cannot be asked has an empty answer."""
        start, found = time.perf_counter(), []
        for request in requests:
            _, to_messages, options, place, task, split = request.args
            messages = to_messages(self.task_dict[task][split][place])
            found.append(HarnessRequest(messages, options))
        results: list[GenerationResult] = [GenerationResult("")] * len(requests)
        bar = tqdm(total=len(requests), desc="answers", disable=self.rank != 0)
        for number, answer in self.answerer.answer(found):
            counts = TokenCounts(output_tokens=answer.num_tokens)
            results[number] = GenerationResult(answer.text, counts)
            if answer.error:
                _, _, _, place, task, _ = requests[number].args
                self.errors.append({"task": task, "item": place, "error": answer.error})
                logger.error(f"{task}, item {place}: {one_line(answer.error)}")
            bar.update()
        bar.close()
        self._report(results, time.perf_counter() - start)
        return results

    def _report(self, results: list[GenerationResult], seconds: float) -> None:
        tokens = sum(result.token_counts.output_tokens for result in results if result.token_counts)
        # Numbers that are logged here stand in the results of lmms-eval, as averages of the ranks.
        log_metrics(
            total_elapsed_time=seconds,
            total_gen_tokens=tokens,
            avg_speed=tokens / seconds if seconds else 0.0,
            additional_metrics={
                "frames": self.answerer.num_frames,
                "segments": self.answerer.num_clips,
                "errors": len(self.errors),
            },
        )
        if self._details is None:
            return
        name = self._details
        if self.world_size > 1:
            name = name.with_name(f"{name.stem}.rank{self.rank}{name.suffix}")
        content = self.about() | {"errors": self.errors}
        with atomic_write(name) as temporary:
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False), "utf-8")

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Refuse: tasks of likelihoods have no messages."""
        raise NotImplementedError("video_llama answers tasks of the output type generate_until")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Refuse: what a later round asks depends on the task's own code."""
        raise NotImplementedError("video_llama answers tasks of the output type generate_until")
