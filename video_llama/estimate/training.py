"""What a training run costs: arithmetic, bytes, time, communication, and what holds it up."""

from __future__ import annotations

from dataclasses import dataclass

from video_llama.config import Config
from video_llama.estimate.batch import Item, training_items
from video_llama.estimate.hardware import (
    BYTES,
    GPUS_PER_NODE,
    LINK_EFFICIENCY,
    NODE_BANDWIDTH,
    Gpu,
    Rates,
)
from video_llama.estimate.memory import Memory, training_memory
from video_llama.estimate.phases import optimiser_phase, trained_parameters, training_phases
from video_llama.estimate.shapes import Llama, parameters
from video_llama.estimate.timing import Phase, Seconds, seconds_of

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
    shards = gpus if cfg.run.fsdp else 1
    flops: dict[str, float] = {}
    moved: dict[str, float] = {}
    seconds: dict[str, float] = {}
    spent = Seconds()
    for item, phase in _phases(cfg, llama, items, cached):
        cost, part = seconds_of(phase, rates), phase.part
        flops[part] = flops.get(part, 0) + item.share * phase.work.flops / rows
        moved[part] = moved.get(part, 0) + item.share * phase.bytes_moved / rows
        seconds[part] = seconds.get(part, 0) + item.share * cost.total
        spent += Seconds(*(item.share * s for s in vars(cost).values()))
    memory = max(
        (
            training_memory(cfg, llama, item, shards=shards, features_cached=cached)
            for item in items
        ),
        key=lambda one: one.total,
    )
    llm_seconds = sum(s for part, s in seconds.items() if part.startswith("language_model"))
    volume, waiting = communication(cfg, llama, gpu, gpus=gpus, hidden_behind=llm_seconds)
    loading = sum(_loading(cfg, item, cores, cached) for item in items)
    step = max(spent.total + waiting, loading)
    arithmetic = sum(flops.values()) * rows
    peak = gpu.peaks.get(rates.computed(cfg.model.precision), gpu.peaks["fp32"])
    return TrainingPlan(
        gpus=gpus,
        parameters=parameters(cfg.model, llama),
        trained=trained_parameters(cfg, llama),
        flops_per_sample=flops,
        bytes_per_sample=moved,
        seconds_per_step=seconds,
        memory=memory,
        compute_seconds=spent.compute,
        memory_seconds=spent.memory,
        launch_seconds=spent.launches,
        loading_seconds=loading,
        communication_seconds=waiting,
        communication_bytes=volume,
        step_seconds=step,
        samples_per_second=gpus * rows / step,
        hours=cfg.run.max_epoch * cfg.run.iters_per_epoch * step / 3600,
        utilisation=arithmetic / step / peak,
        bottleneck=_bottleneck(spent, loading, waiting),
        fits=memory.total <= gpu.memory,
        items=items,
    )


def _phases(cfg: Config, llama: Llama, items: list[Item], cached: bool) -> list[tuple[Item, Phase]]:
    optimiser = optimiser_phase(cfg, llama)
    every = cfg.run.accum_grad_iters
    update = Phase(**{**vars(optimiser), "work": optimiser.work * (1 / every)})
    return [
        (item, phase)
        for item in items
        for phase in [*training_phases(cfg, llama, item, features_cached=cached), update]
    ]


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
