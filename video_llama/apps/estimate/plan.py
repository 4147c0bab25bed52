"""Plans of a training run and of a chat: time, memory, communication, and what limits them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace

from video_llama.apps.estimate.hardware import (
    BYTES,
    COMPILED_LAUNCH_SECONDS,
    GPUS_PER_NODE,
    INT8_SLOWDOWN,
    LINK_EFFICIENCY,
    NODE_BANDWIDTH,
    QUANTISED_LAUNCHES,
    Gpu,
    Rates,
)
from video_llama.apps.estimate.measure import (
    BatchRow,
    Cost,
    StepCost,
    measure_answer,
    measure_training,
)
from video_llama.apps.estimate.memory import (
    Memory,
    chat_memory,
    layer_matrices,
    part_weights,
    trained_parameters,
    training_memory,
)
from video_llama.config.schema import Config
from video_llama.datasets.base import DatasetSettings
from video_llama.models.video_llama import VideoLlama
from video_llama.processors.settings import AudioSettings, PictureSettings, VideoSettings
from video_llama.types import ConfigError

# Lengths of texts are not known before annotations are read: typical ones are assumed.
CAPTION_TOKENS = 24
"""Assumed length of a short caption, padded to the longest of its batch."""
LONG_CAPTION_TOKENS = 110
"""The same of a caption of stage 2, which describes in detail."""
CONVERSATION_TOKENS = 320
"""The same of a conversation, its questions included."""
PROMPT_TOKENS = 36
"""Assumed tokens of the text around the media of a caption prompt."""
QUESTION_TOKENS = 64
"""Assumed tokens of a chat's template and question."""
NEW_TOKENS = 128
"""Assumed length of an answer."""
ANSWER_SHARE = 0.7
"""Assumed part of a conversation's tokens that has labels."""
CORE_SECONDS = {"clip": 0.28, "picture": 0.012, "sound": 0.12}
"""Processor seconds to read an item and transform it. Clips: `benchmarks/results/data.json`
(596 x 336, 25 frames a second, 12 s, 8 frames taken); pictures of 640 x 480 and sounds of 10 s:
measured in the same way."""
CORES_PER_GPU = 8
"""Assumed processor cores that decode for one GPU."""
MANY_ROWS = 8
"""Rows from which nf4 weights are written out in the computing precision before the product."""


def training_rows(cfg: Config, text_tokens: int | None = None) -> list[BatchRow]:
    """Describe a typical row of each data set.

    Args:
        cfg: with a branch that trains.
        text_tokens: tokens of a row beside its media; None: as assumed.

    Raises:
        ConfigError: no data set.
    """
    if not cfg.datasets:
        raise ConfigError("datasets: empty; name the data sets to train on")
    ratios = {name: entry.sample_ratio for name, entry in cfg.datasets.items()}
    shares = {name: 1.0 if ratio is None else ratio for name, ratio in ratios.items()}
    total, audio = sum(shares.values()), cfg.model.trained_branch == "audio"
    rows = []
    for name, entry in cfg.datasets.items():
        frames, segments = _frames(entry), 0
        if entry.data_type.startswith("audio"):
            frames, segments = 0, _segments(entry.audio_processor.train)
        text, labelled = _text(cfg, entry, text_tokens)
        media = cfg.model.num_audio_query_token if audio else cfg.model.num_video_query_token
        seconds = CORE_SECONDS["sound" if segments else "clip" if frames > 1 else "picture"]
        share = shares[name] / total
        rows.append(BatchRow(name, share, frames, segments, media, text, labelled, seconds))
    return rows


def question_row(cfg: Config, text_tokens: int | None = None) -> BatchRow:
    """Describe what a chat is asked about: the first data set's clip, with sound if it is heard.

    Args:
        cfg: any configuration.
        text_tokens: tokens of the prompt beside its media; None: as assumed.
    """
    entry = next(iter(cfg.datasets.values()), None)
    pictures = entry.vis_processor.train if entry else None
    frames = pictures.n_frms if isinstance(pictures, VideoSettings) else 8
    segments, tokens = 0, cfg.model.num_video_query_token
    if cfg.model.equip_audio_branch:
        sound = entry.audio_processor.train if entry else None
        segments = _segments(sound) or cfg.model.max_audio_clips
        tokens += cfg.model.num_audio_query_token
    seconds = CORE_SECONDS["clip"] + (CORE_SECONDS["sound"] if segments else 0)
    text = text_tokens or QUESTION_TOKENS
    return BatchRow("question", 1.0, frames, segments, tokens, text, 0, seconds)


def _frames(entry: DatasetSettings) -> int:
    pictures: PictureSettings | None = entry.vis_processor.train
    clip = entry.data_type.startswith("video")
    return pictures.n_frms if clip and isinstance(pictures, VideoSettings) else 1


def _segments(sound: AudioSettings | None) -> int:
    return sound.clips_per_video if sound is not None else 0


def _text(cfg: Config, entry: DatasetSettings, given: int | None) -> tuple[int, int]:
    """Return the tokens of text and those with labels."""
    if entry.has_conversations:
        most = entry.max_length - (entry.num_video_query_token or 0)
        tokens = given or min(CONVERSATION_TOKENS, most)
        return tokens, max(1, round(ANSWER_SHARE * tokens))
    around = 1 + (PROMPT_TOKENS if cfg.model.prompt_path else 0)
    typical = LONG_CAPTION_TOKENS if cfg.model.prompt_path else CAPTION_TOKENS
    caption = max(1, (given or around + min(typical, cfg.model.max_txt_len)) - around)
    return around + caption, caption


@dataclass(frozen=True)
class Seconds:
    """Where the time of a pass, or of several, goes."""

    compute: float = 0.0
    memory: float = 0.0
    launches: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.compute + self.memory + self.launches

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(
            self.compute + other.compute,
            self.memory + other.memory,
            self.launches + other.launches,
        )

    def __mul__(self, factor: float) -> Seconds:
        return Seconds(self.compute * factor, self.memory * factor, self.launches * factor)

    @property
    def bottleneck(self) -> str:
        """What takes most of it."""
        takes = {
            "compute": self.compute,
            "memory bandwidth": self.memory,
            "starting operations from Python": self.launches,
        }
        return max(takes, key=lambda name: takes[name])


def seconds_of(cost: Cost, rates: Rates, *, storage: str = "none") -> Seconds:
    """Apply the roofline model to one pass of one part.

    A product takes as long as its arithmetic or the reading of its weights, whichever is longer;
    other operations take as long as their traffic and come on top. Where the device works on its
    own, starting operations only shows when it takes longer than the work.

    Args:
        cost: what is done.
        rates: of the device.
        storage: quantisation of the weights.
    """
    precision = rates.computed(cost.precision)
    slowdown = INT8_SLOWDOWN if storage == "int8" else 1.0
    arithmetic = cost.products / rates.matmul(precision, *cost.shape) * slowdown
    attention = cost.attention / rates.attention(precision)
    traffic = cost.traffic / rates.moved
    launching = cost.kernels * QUANTISED_LAUNCHES[storage] * rates.launch
    if not rates.overlaps:
        # Reading the weights is part of the product's measured time.
        return Seconds(arithmetic + attention, traffic, launching)
    reading = _stored_bytes(cost, storage) / rates.stream
    compute = attention + (arithmetic if arithmetic >= reading else 0.0)
    memory = traffic + (reading if reading > arithmetic else 0.0)
    return Seconds(compute, memory, max(0.0, launching - compute - memory))


def _stored_bytes(cost: Cost, storage: str) -> float:
    """Bytes of weights that a pass reads, which are counted in the computing precision."""
    if storage == "none":
        return cost.weights
    stored = BYTES[storage] / BYTES[cost.precision]
    if storage == "nf4" and cost.shape[0] > MANY_ROWS:
        stored += 2
    return cost.weights * stored


def _storage(cfg: Config, part: str) -> str:
    """Return the quantisation of the weights of a part, its backward pass included."""
    return cfg.model.quantization if _is_llm(part) else "none"


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
    items: list[BatchRow]


@dataclass
class _StepMeans:
    """Means of a step over the data sets, by part and pass."""

    flops: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    moved: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    spent: Seconds = field(default_factory=Seconds)
    costs: list[StepCost] = field(default_factory=list)

    def add(self, cfg: Config, step: StepCost, row: BatchRow, rates: Rates) -> None:
        # Each batch comes from one data set, in proportion to its share.
        self.costs.append(step)
        for part, cost in step.parts.items():
            self._add_part(part, cost, rates, storage=_storage(cfg, part), share=row.share)

    def add_optimiser(self, updated: float, rates: Rates) -> None:
        # AdamW reads weight, gradient and two moments and writes all but the gradient, in fp32.
        cost = Cost(traffic=7 * 4 * updated, kernels=60)
        self._add_part("optimiser", cost, rates, storage="none", share=1.0)

    def _add_part(self, part: str, cost: Cost, rates: Rates, *, storage: str, share: float) -> None:
        needed = seconds_of(cost, rates, storage=storage) * share
        self.spent += needed
        self.seconds[part] += needed.total
        self.flops[part] += share * cost.flops
        self.moved[part] += share * (_stored_bytes(cost, storage) + cost.traffic)


def plan_training(
    cfg: Config,
    model: VideoLlama,
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
        model: of `meta_model`.
        gpu: the device.
        rates: how fast it works.
        gpus: how many.
        text_tokens: of a row beside its media; None: as assumed.
        cores: that load for one GPU.
        features_cached: as after the first epoch of `run.feature_cache`; None: if that is set.
    """
    cached = cfg.run.feature_cache is not None if features_cached is None else features_cached
    rows, size = training_rows(cfg, text_tokens), cfg.run.batch_size_train
    means = _StepMeans()
    for row in rows:
        means.add(cfg, measure_training(cfg, model, row, features_cached=cached), row, rates)
    trained = trained_parameters(model)
    means.add_optimiser(trained / cfg.run.accum_grad_iters, rates)
    workers = min(max(1, cfg.run.num_workers), cores)
    loading = sum(0 if cached else row.share * size * row.core_seconds / workers for row in rows)
    # Exchange gradients, then see whether the device or the loading of data is slower.
    memory = _largest_memory(cfg, model, means.costs, shards=gpus if cfg.run.fsdp else 1)
    hidden = sum(t for part, t in means.seconds.items() if _is_llm(part))
    volume, waiting = communication(cfg, model, gpu, gpus=gpus, hidden_behind=hidden)
    step = max(means.spent.total + waiting, loading)
    peak = gpu.peaks.get(rates.computed(cfg.model.precision), gpu.peaks["fp32"])
    return TrainingPlan(
        gpus=gpus,
        parameters=_parameters(model),
        trained=trained,
        flops_per_sample={part: value / size for part, value in means.flops.items()},
        bytes_per_sample={part: value / size for part, value in means.moved.items()},
        seconds_per_step=dict(means.seconds),
        memory=memory,
        compute_seconds=means.spent.compute,
        memory_seconds=means.spent.memory,
        launch_seconds=means.spent.launches,
        loading_seconds=loading,
        communication_seconds=waiting,
        communication_bytes=volume,
        step_seconds=step,
        samples_per_second=gpus * size / step,
        hours=cfg.run.max_epoch * cfg.run.iters_per_epoch * step / 3600,
        utilisation=sum(means.flops.values()) / step / peak,
        bottleneck=_limit(means.spent, loading, waiting),
        fits=memory.total <= gpu.memory,
        items=rows,
    )


def _largest_memory(
    cfg: Config, model: VideoLlama, costs: list[StepCost], *, shards: int
) -> Memory:
    needs = [training_memory(cfg, model, cost, shards=shards) for cost in costs]
    return max(needs, key=lambda need: need.total)


def _parameters(model: VideoLlama) -> dict[str, int]:
    return {name: part.parameters for name, part in part_weights(model).items()}


def _is_llm(part: str) -> bool:
    return part.startswith("language_model")


def _limit(spent: Seconds, loading: float, waiting: float) -> str:
    if loading > spent.total + waiting:
        return "decoding"
    longest = max(spent.compute, spent.memory, spent.launches)
    return "communication" if waiting > longest else spent.bottleneck


def communication(
    cfg: Config, model: VideoLlama, gpu: Gpu, *, gpus: int, hidden_behind: float
) -> tuple[float, float]:
    """Return the bytes that each GPU sends in a step, and the seconds that it waits for them.

    Gradients are summed over a ring, inside each machine and between machines, once per update. The
    branch lies in front of the language model, so that its gradients are the last ones: nothing
    hides their exchange. FSDP gathers the LLM's layers twice a step, while others compute.

    Args:
        cfg: with a branch that trains.
        model: of `meta_model`.
        gpu: whose link is used.
        gpus: how many.
        hidden_behind: seconds of the LLM's arithmetic.
    """
    if gpus == 1:
        return 0.0, 0.0
    part = (gpus - 1) / gpus
    # The slowest link of a ring through all GPUs decides.
    slowest = min(gpu.link, NODE_BANDWIDTH) if gpus > GPUS_PER_NODE else gpu.link
    bandwidth = slowest * LINK_EFFICIENCY
    volume = 2 * part * 4 * trained_parameters(model) / cfg.run.accum_grad_iters
    waiting = volume / bandwidth
    if cfg.run.fsdp:
        depth = model.language_model.config.num_hidden_layers
        layers = depth * layer_matrices(model) * BYTES[cfg.model.precision]
        gathered = 2 * part * layers
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
    rates: Rates,
    *,
    text_tokens: int | None = None,
    new_tokens: int = NEW_TOKENS,
) -> ChatPlan:
    """Estimate an answer.

    Args:
        cfg: any configuration.
        model: of `meta_model`.
        gpu: the device.
        rates: how fast it works.
        text_tokens: of the prompt beside its media; None: as assumed.
        new_tokens: of the answer.
    """
    row = question_row(cfg, text_tokens)
    first, token = measure_answer(cfg, model, row, new_tokens=new_tokens)
    seconds = {name: _seconds(cfg, name, cost, rates).total for name, cost in first.parts.items()}
    flops = {name: cost.flops for name, cost in first.parts.items()}
    eager = _total(cfg, token, rates)
    # A recorded graph starts the same operations without Python.
    recorded = replace(rates, launch=min(rates.launch, COMPILED_LAUNCH_SECONDS))
    memory = chat_memory(cfg, model, first, row, new_tokens=new_tokens)
    return ChatPlan(
        parameters=_parameters(model),
        flops={**flops, "next token": sum(cost.flops for cost in token.parts.values())},
        seconds={**seconds, "next token": eager.total},
        memory=memory,
        decoding_seconds=row.core_seconds,
        first_token_seconds=sum(seconds.values()),
        tokens_per_second=1 / eager.total,
        compiled_tokens_per_second=1 / _total(cfg, token, recorded).total,
        new_tokens=new_tokens,
        bottleneck=eager.bottleneck,
        fits=memory.total <= gpu.memory,
        item=row,
    )


def _total(cfg: Config, step: StepCost, rates: Rates) -> Seconds:
    return sum((_seconds(cfg, *part, rates) for part in step.parts.items()), Seconds())


def _seconds(cfg: Config, name: str, cost: Cost, rates: Rates) -> Seconds:
    return seconds_of(cost, rates, storage=_storage(cfg, name))
