"""Plans of a training run and of a chat: time, memory, communication, and what limits them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from video_llama.apps.estimate.hardware import ASSUMED, BYTES, Gpu
from video_llama.apps.estimate.measure import Cost, StepCost, measure_answer, measure_training
from video_llama.apps.estimate.memory import (
    Memory,
    chat_memory,
    layer_matrices,
    part_weights,
    trained_parameters,
    training_memory,
)
from video_llama.apps.estimate.rows import BatchRow, question_row, training_rows
from video_llama.config.schema import Config
from video_llama.models.video_llama import VideoLlama


class Seconds(NamedTuple):
    """Where the time of a pass, or of several, goes."""

    compute: float = 0.0
    memory: float = 0.0
    launches: float = 0.0

    @property
    def bottleneck(self) -> str:
        """What takes most of it."""
        names = ("compute", "memory bandwidth", "starting operations from Python")
        return names[self.index(max(self))]


def seconds_of(cost: Cost, gpu: Gpu, *, storage: str = "none") -> Seconds:
    """Apply the roofline model to one pass of a part, whose weights are stored quantised or not.

    A product takes as long as its arithmetic or the reading of its weights, whichever is longer;
    other operations take as long as their traffic and come on top. Where the device works on its
    own, starting operations only shows when it takes longer than the work.
    """
    precision = gpu.computed(cost.precision)
    slowdown = ASSUMED["int8_slowdown"] if storage == "int8" else 1.0
    arithmetic = cost.products / gpu.product_rate(precision, *cost.shape) * slowdown
    attention = cost.attention / (gpu.peaks[precision] * gpu.attention_efficiency)
    traffic = cost.traffic / gpu.moved
    launching = cost.kernels * ASSUMED["quantised_launches"][storage] * gpu.launch
    if not gpu.overlaps:
        # Reading the weights is part of the product's measured time.
        return Seconds(arithmetic + attention, traffic, launching)
    reading = _stored_bytes(cost, storage) / gpu.stream
    compute = attention + (arithmetic if arithmetic >= reading else 0.0)
    memory = traffic + (reading if reading > arithmetic else 0.0)
    return Seconds(compute, memory, max(0.0, launching - compute - memory))


def _stored_bytes(cost: Cost, storage: str) -> float:
    """Bytes of weights that a pass reads, which are counted in the computing precision."""
    if storage == "none":
        return cost.weights
    stored = BYTES[storage] / BYTES[cost.precision]
    if storage == "nf4" and cost.shape[0] > ASSUMED["nf4_rows"]:
        stored += 2
    return cost.weights * stored


@dataclass(frozen=True)
class _Pass:
    """One pass of a part, in a share of the steps."""

    part: str
    share: float
    cost: Cost
    moved: float
    seconds: Seconds


def _passes(cfg: Config, step: StepCost, gpu: Gpu, share: float = 1.0) -> list[_Pass]:
    passes = []
    for part, cost in step.parts.items():
        # Of all parts only the language model may be quantised.
        storage = cfg.model.quantization if _is_llm(part) else "none"
        seconds = seconds_of(cost, gpu, storage=storage)
        moved = _stored_bytes(cost, storage) + cost.traffic
        passes.append(_Pass(part, share, cost, moved, seconds))
    return passes


def _is_llm(part: str) -> bool:
    return part.startswith("language_model")


def _by_part(passes: Sequence[_Pass], value: Callable[[_Pass], float]) -> dict[str, float]:
    sums: defaultdict[str, float] = defaultdict(float)
    for each in passes:
        sums[each.part] += each.share * value(each)
    return dict(sums)


def _spent(passes: Sequence[_Pass]) -> Seconds:
    return Seconds(*(sum(p.share * p.seconds[n] for p in passes) for n in range(3)))


def _parameters(model: VideoLlama) -> dict[str, int]:
    return {name: part.parameters for name, part in part_weights(model).items()}


@dataclass(frozen=True)
class TrainingPlan:
    """A run on a number of GPUs; all values of a step are means over the data sets' shares.

    Attributes:
        trained: parameters with gradients.
        flops_per_sample, bytes_per_sample, seconds_per_step: by part and pass.
        memory: of the data set that needs most.
        loading_seconds: of a step, for decoding by the cores of one GPU, beside the GPU.
        communication_seconds: of a step, not hidden behind arithmetic.
        communication_bytes: sent by each GPU in a step.
        step_seconds: of the slower of GPU and loading.
        samples_per_second: of all GPUs.
        hours: for the configuration's epochs and steps.
        utilisation: model operations over the GPU's peak (MFU), 0 to 1.
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
    items: Sequence[BatchRow]


def plan_training(
    cfg: Config,
    model: VideoLlama,
    gpu: Gpu,
    *,
    gpus: int,
    text_tokens: int | None = None,
    cores: float = 8,
    features_cached: bool | None = None,
) -> TrainingPlan:
    """Estimate a run on a number of GPUs; the model is one of `meta_model`.

    Args:
        text_tokens: of a row beside its media; None: as assumed.
        cores: that load for one GPU.
        features_cached: as after the first epoch of `run.feature_cache`; None: if that is set.
    """
    # With a feature cache, only the first epoch computes what is frozen.
    cached = cfg.run.feature_cache is not None if features_cached is None else features_cached
    rows, size = training_rows(cfg, text_tokens), cfg.run.batch_size_train
    shards = gpus if cfg.run.fsdp else 1
    steps = [measure_training(cfg, model, row, features_cached=cached) for row in rows]
    needs = [training_memory(cfg, model, step, shards=shards) for step in steps]
    memory = max(needs, key=lambda need: need.total)
    # Each batch comes from one data set, in proportion to its share.
    pairs = zip(rows, steps, strict=True)
    passes = [each for row, step in pairs for each in _passes(cfg, step, gpu, row.share)]
    # AdamW reads weight, gradient and two moments and writes all but the gradient, in fp32.
    trained = trained_parameters(model)
    update = Cost(traffic=7 * 4 * trained / cfg.run.accum_grad_iters, kernels=60)
    passes += _passes(cfg, StepCost({"optimiser": update}), gpu)
    spent, seconds = _spent(passes), _by_part(passes, lambda p: sum(p.seconds))
    flops = _by_part(passes, lambda p: p.cost.flops)
    # Exchange gradients, then see whether the device or the loading of data is slower.
    hidden = sum(time for part, time in seconds.items() if _is_llm(part))
    volume, waiting = communication(cfg, model, gpu, gpus=gpus, hidden_behind=hidden)
    loading = 0.0 if cached else _loading_seconds(cfg, rows, cores)
    time = max(sum(spent) + waiting, loading)
    return TrainingPlan(
        gpus=gpus,
        parameters=_parameters(model),
        trained=trained,
        flops_per_sample={part: value / size for part, value in flops.items()},
        bytes_per_sample=_by_part(passes, lambda p: p.moved / size),
        seconds_per_step=seconds,
        memory=memory,
        compute_seconds=spent.compute,
        memory_seconds=spent.memory,
        launch_seconds=spent.launches,
        loading_seconds=loading,
        communication_seconds=waiting,
        communication_bytes=volume,
        step_seconds=time,
        samples_per_second=gpus * size / time,
        hours=cfg.run.max_epoch * cfg.run.iters_per_epoch * time / 3600,
        utilisation=sum(flops.values()) / time / gpu.peaks[gpu.computed(cfg.model.precision)],
        bottleneck=_limit(spent, loading, waiting),
        fits=memory.total <= gpu.memory,
        items=rows,
    )


def _loading_seconds(cfg: Config, rows: Sequence[BatchRow], cores: float) -> float:
    workers = min(max(1, cfg.run.num_workers), cores)
    return cfg.run.batch_size_train * sum(row.share * row.core_seconds for row in rows) / workers


def _limit(spent: Seconds, loading: float, waiting: float) -> str:
    if loading > sum(spent) + waiting:
        return "decoding"
    return "communication" if waiting > max(spent) else spent.bottleneck


def communication(
    cfg: Config, model: VideoLlama, gpu: Gpu, *, gpus: int, hidden_behind: float
) -> tuple[float, float]:
    """Return the bytes that each GPU sends in a step, and the seconds that it waits for them.

    Gradients are summed over a ring, inside each machine and between machines, once per update. The
    branch lies in front of the language model, so that its gradients are the last ones: nothing
    hides their exchange. FSDP gathers the LLM's layers twice a step, while others compute for
    `hidden_behind` seconds.
    """
    if gpus == 1:
        return 0.0, 0.0
    part = (gpus - 1) / gpus
    # The slowest link of a ring through all GPUs decides.
    several = gpus > ASSUMED["gpus_per_node"]
    slowest = min(gpu.link, ASSUMED["node_gigabytes"] * 1e9) if several else gpu.link
    bandwidth = slowest * ASSUMED["link_efficiency"]
    volume = 2 * part * 4 * trained_parameters(model) / cfg.run.accum_grad_iters
    waiting = volume / bandwidth
    if cfg.run.fsdp:
        depth = model.language_model.config.num_hidden_layers
        gathered = 2 * part * depth * layer_matrices(model) * BYTES[cfg.model.precision]
        volume += gathered
        waiting += max(0.0, gathered / bandwidth - hidden_behind)
    return volume, waiting


@dataclass(frozen=True)
class ChatPlan:
    """One question about one clip.

    Attributes:
        flops, seconds: until the first token, by part; "next token" for each that follows.
        memory: with an answer of `new_tokens`.
        decoding_seconds: of one core, to read the clip.
        first_token_seconds: from the decoded clip to the first token.
        tokens_per_second, bottleneck: of eager decoding.
        item: what is assumed to be asked about.
    """

    parameters: dict[str, int]
    flops: dict[str, float]
    seconds: dict[str, float]
    memory: Memory
    decoding_seconds: float
    first_token_seconds: float
    tokens_per_second: float
    compiled_tokens_per_second: float
    new_tokens: int
    bottleneck: str
    fits: bool
    item: BatchRow


def plan_chat(
    cfg: Config,
    model: VideoLlama,
    gpu: Gpu,
    *,
    text_tokens: int | None = None,
    new_tokens: int = 128,
) -> ChatPlan:
    """Estimate an answer of `new_tokens` to a question of `text_tokens`, or as many as assumed."""
    row = question_row(cfg, text_tokens)
    first, token = measure_answer(cfg, model, row, new_tokens=new_tokens)
    passes, eager = _passes(cfg, first, gpu), _spent(_passes(cfg, token, gpu))
    seconds = _by_part(passes, lambda p: sum(p.seconds))
    # A recorded graph starts the same operations without Python.
    launch = min(gpu.launch, ASSUMED["compiled_launch_microseconds"] * 1e-6)
    compiled = _spent(_passes(cfg, token, replace(gpu, launch=launch)))
    flops = _by_part(passes, lambda p: p.cost.flops)
    memory = chat_memory(cfg, model, first, row, new_tokens=new_tokens)
    return ChatPlan(
        parameters=_parameters(model),
        flops={**flops, "next token": sum(cost.flops for cost in token.parts.values())},
        seconds={**seconds, "next token": sum(eager)},
        memory=memory,
        decoding_seconds=row.core_seconds,
        first_token_seconds=sum(seconds.values()),
        tokens_per_second=1 / sum(eager),
        compiled_tokens_per_second=1 / sum(compiled),
        new_tokens=new_tokens,
        bottleneck=eager.bottleneck,
        fits=memory.total <= gpu.memory,
        item=row,
    )
