"""What a training run costs: arithmetic, bytes, time, communication, and what holds it up."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

from video_llama.apps.estimate.batch import Item, training_items
from video_llama.apps.estimate.hardware import (
    BYTES,
    GPUS_PER_NODE,
    LINK_EFFICIENCY,
    NODE_BANDWIDTH,
    Gpu,
    Rates,
)
from video_llama.apps.estimate.memory import Memory, training_memory
from video_llama.apps.estimate.phases import optimiser_phase, trained_parameters, training_phases
from video_llama.apps.estimate.shapes import Llama, parameters
from video_llama.apps.estimate.timing import Phase, Seconds, seconds_of
from video_llama.config.schema import Config

CORES_PER_GPU = 8
"""Assumed processor cores that decode for one GPU."""


@dataclass(frozen=True)
class TrainingPlan:
    """A run on a number of GPUs; all values of a step are means over the data sets' shares.

    Attributes:
        gpus: processes, one GPU each.
        parameters: by part.
        trained: parameters with gradients.
        flops_per_sample: by part and pass.
        bytes_per_sample: weights read and element-wise traffic, by part and pass.
        seconds_per_step: by part and pass.
        memory: of the data set that needs most.
        compute_seconds, memory_seconds, launch_seconds: of a step, by what takes them.
        loading_seconds: of a step, for decoding by the cores of one GPU, beside the GPU.
        communication_seconds: of a step, not hidden behind arithmetic.
        communication_bytes: sent by each GPU in a step.
        step_seconds: of the slower of GPU and loading.
        samples_per_second: of all GPUs.
        hours: for the configuration's epochs and steps.
        utilisation: model operations over the GPU's peak (MFU), 0 to 1.
        bottleneck: what takes most of the time.
        fits: whether the memory is enough.
        items: what the batches are assumed to consist of.
    """

    gpus: int
    parameters: dict[str, int]
    trained: int
    flops_per_sample: dict[str, float]
    bytes_per_sample: dict[str, float]
    seconds_per_step: dict[str, float]
    memory: Memory
    compute_seconds: float
    memory_seconds: float
    launch_seconds: float
    loading_seconds: float
    communication_seconds: float
    communication_bytes: float
    step_seconds: float
    samples_per_second: float
    hours: float
    utilisation: float
    bottleneck: str
    fits: bool
    items: list[Item]


def plan_training(
    cfg: Config,
    llama: Llama,
    gpu: Gpu,
    rates: Rates,
    *,
    gpus: int,
    text_tokens: int | None = None,
    cores: float = CORES_PER_GPU,
    features_cached: bool | None = None,
) -> TrainingPlan:
    """Estimate a run.

    Args:
        cfg: with a branch that trains.
        llama: the language model.
        gpu: the device.
        rates: how fast it works.
        gpus: how many.
        text_tokens: of a row beside its media; None: as assumed.
        cores: that load for one GPU.
        features_cached: as after the first epoch of `run.feature_cache`; None: if that is set.
    """
    cached = cfg.run.feature_cache is not None if features_cached is None else features_cached
    items, rows = training_items(cfg, text_tokens), cfg.run.batch_size_train
    sums = _Sums()
    for item in items:
        for phase in _phases(cfg, llama, item, cached):
            sums.add(phase, item.share, seconds_of(phase, rates))
    memory = _largest_memory(cfg, llama, items, shards=gpus if cfg.run.fsdp else 1, cached=cached)
    llm_seconds = sum(s for part, s in sums.seconds.items() if part.startswith("language_model"))
    volume, waiting = communication(cfg, llama, gpu, gpus=gpus, hidden_behind=llm_seconds)
    loading = sum(_loading(cfg, item, cores, cached) for item in items)
    step = max(sums.spent.total + waiting, loading)
    peak = gpu.peaks.get(rates.computed(cfg.model.precision), gpu.peaks["fp32"])
    return TrainingPlan(
        gpus=gpus,
        parameters=parameters(cfg.model, llama),
        trained=trained_parameters(cfg, llama),
        flops_per_sample={part: flops / rows for part, flops in sums.flops.items()},
        bytes_per_sample={part: moved / rows for part, moved in sums.moved.items()},
        seconds_per_step=dict(sums.seconds),
        memory=memory,
        compute_seconds=sums.spent.compute,
        memory_seconds=sums.spent.memory,
        launch_seconds=sums.spent.launches,
        loading_seconds=loading,
        communication_seconds=waiting,
        communication_bytes=volume,
        step_seconds=step,
        samples_per_second=gpus * rows / step,
        hours=cfg.run.max_epoch * cfg.run.iters_per_epoch * step / 3600,
        utilisation=sum(sums.flops.values()) / step / peak,
        bottleneck=_bottleneck(sums.spent, loading, waiting),
        fits=memory.total <= gpu.memory,
        items=items,
    )


@dataclass
class _Sums:
    """Of a step, by part, over the data sets."""

    flops: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    moved: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    spent: Seconds = field(default_factory=Seconds)

    def add(self, phase: Phase, share: float, cost: Seconds) -> None:
        self.flops[phase.part] += share * phase.work.flops
        self.moved[phase.part] += share * phase.bytes_moved
        self.seconds[phase.part] += share * cost.total
        self.spent += Seconds(*(share * seconds for seconds in vars(cost).values()))


def _phases(cfg: Config, llama: Llama, item: Item, cached: bool) -> list[Phase]:
    optimiser = optimiser_phase(cfg, llama)
    update = replace(optimiser, work=optimiser.work * (1 / cfg.run.accum_grad_iters))
    return [*training_phases(cfg, llama, item, features_cached=cached), update]


def _largest_memory(
    cfg: Config, llama: Llama, items: list[Item], *, shards: int, cached: bool
) -> Memory:
    options: dict[str, Any] = {"shards": shards, "features_cached": cached}
    needs = [training_memory(cfg, llama, item, **options) for item in items]
    return max(needs, key=lambda need: need.total)


def _loading(cfg: Config, item: Item, cores: float, cached: bool) -> float:
    """Seconds of a step in which an item's share of the batches is decoded."""
    if cached:
        return 0.0
    workers = min(max(1, cfg.run.num_workers), cores)
    return item.share * cfg.run.batch_size_train * item.core_seconds / workers


def _bottleneck(spent: Seconds, loading: float, waiting: float) -> str:
    if loading > spent.total + waiting:
        return "decoding"
    takes = {
        "compute": spent.compute,
        "memory bandwidth": spent.memory,
        "starting operations from Python": spent.launches,
        "communication": waiting,
    }
    return max(takes, key=lambda name: takes[name])


def communication(
    cfg: Config, llama: Llama, gpu: Gpu, *, gpus: int, hidden_behind: float
) -> tuple[float, float]:
    """Bytes that each GPU sends in a step, and the seconds that it waits for them.

    Gradients are summed over a ring, inside each machine and between machines, once per update. The
    branch lies in front of the language model, so that its gradients are the last ones: nothing
    hides their exchange. FSDP gathers the LLM's layers twice a step, while others compute.

    Args:
        cfg: the configuration.
        llama: the language model.
        gpu: the device.
        gpus: how many.
        hidden_behind: seconds of the LLM's arithmetic.
    """
    if gpus == 1:
        return 0.0, 0.0
    part = (gpus - 1) / gpus
    volume = 2 * part * 4 * trained_parameters(cfg, llama) / cfg.run.accum_grad_iters
    waiting = volume / _ring_bandwidth(gpu, gpus)
    if cfg.run.fsdp:
        layers = llama.num_hidden_layers * llama.layer_matrices * BYTES[cfg.model.precision]
        gathered = 2 * part * layers
        volume += gathered
        waiting += max(0.0, gathered / _ring_bandwidth(gpu, gpus) - hidden_behind)
    return volume, waiting


def _ring_bandwidth(gpu: Gpu, gpus: int) -> float:
    """Of a ring through all GPUs: that of its slowest link."""
    slowest = min(gpu.link, NODE_BANDWIDTH) if gpus > GPUS_PER_NODE else gpu.link
    return slowest * LINK_EFFICIENCY
