"""The passes of a training step and of an answer, part by part. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from video_llama.apps.estimate import work
from video_llama.apps.estimate.batch import Item
from video_llama.apps.estimate.hardware import QUANTISED_LAUNCHES
from video_llama.apps.estimate.shapes import (
    SOUND_GRID,
    Llama,
    parameters,
    trained_groups,
    vit_hidden,
    vit_tokens,
)
from video_llama.apps.estimate.timing import Phase
from video_llama.apps.estimate.work import Work, frozen_backward, linear, trained_backward
from video_llama.config.schema import Config

BACKWARD = ", backward"
"""Ends the name of a part's backward pass."""


def llm_storage(cfg: Config) -> str:
    """How the matrices of the LLM's layers are stored."""
    settings = cfg.model
    return settings.precision if settings.quantization == "none" else settings.quantization


def amp_precision(cfg: Config) -> str:
    """What the parts that train compute in."""
    return "bf16" if cfg.run.amp else "fp32"


def training_phases(cfg: Config, llama: Llama, item: Item, *, features_cached: bool) -> list[Phase]:
    """The passes of one step, without the optimiser.

    Args:
        cfg: with a branch that trains.
        llama: the language model.
        item: what the rows of the batch are; `run.batch_size_train` of them.
        features_cached: whether the frozen encoders' features are read instead of computed.
    """
    rows, audio = cfg.run.batch_size_train, cfg.model.trained_branch == "audio"
    phases: list[Phase] = []
    if not features_cached:
        encoders = [imagebind_phase(cfg, item, rows)] if audio else eyes_phases(cfg, item, rows)
        phases += _with_backward(encoders, trained_groups(cfg.model))
    branch = branch_phase(cfg, llama, item, rows, audio=audio, precision=amp_precision(cfg))
    phases += [branch, _backward(branch, trained_backward(branch.work))]
    return [*phases, *_llm_training(cfg, llama, item, rows)]


def eyes_phases(cfg: Config, item: Item, rows: float) -> list[Phase]:
    """The encoders of the video branch on the frames of `item`."""
    settings, frames = cfg.model, rows * item.frames
    tokens, width = vit_tokens(settings), settings.vit_config.embed_dim
    precision = settings.vit_precision if settings.freeze_vit else amp_precision(cfg)
    shape = (frames * tokens, width, vit_hidden(settings))
    vit = Phase("vision_encoder", work.vit(settings, frames), precision, precision, shape)
    shape = (frames * tokens, width, settings.qformer_config.hidden_size)
    summary = work.frame_qformer(settings, frames)
    return [vit, Phase("frame_qformer", summary, "fp32", precision, shape)]


def _with_backward(encoders: list[Phase], trained: set[str]) -> Iterator[Phase]:
    """Encoders, each followed by its backward pass if it trains or has to pass gradients on."""
    gradients = False
    for phase in encoders:
        yield phase
        if phase.part in trained:
            gradients = True
            yield _backward(phase, trained_backward(phase.work))
        elif gradients:
            yield _backward(phase, frozen_backward(phase.work))


def imagebind_phase(cfg: Config, item: Item, rows: float) -> Phase:
    """ImageBind's tower for the sounds of `item`, or for its frames where it has none."""
    settings, precision = cfg.model, cfg.model.imagebind_precision
    sizes = settings.imagebind_config
    if item.segments:
        width, items = sizes.audio_embed_dim, rows * item.segments
        tokens = 1 + SOUND_GRID[0] * SOUND_GRID[1]
        done = work.imagebind_sounds(settings, items)
    else:
        width, items = sizes.vision_embed_dim, rows * item.frames
        done, tokens = (
            work.imagebind_pictures(settings, items),
            1 + (settings.image_size // 14) ** 2,
        )
    return Phase("audio_encoder", done, precision, precision, (items * tokens, width, 4 * width))


def branch_phase(
    cfg: Config, llama: Llama, item: Item, rows: float, *, audio: bool, precision: str
) -> Phase:
    """The video or the audio branch on the features of `item`, computed in `precision`."""
    settings, sizes = cfg.model, cfg.model.qformer_config
    steps = item.segments or item.frames if audio else item.frames
    done = work.temporal(settings, llama.hidden_size, rows, audio=audio, steps=steps)
    queries = settings.num_audio_query_token if audio else settings.num_video_query_token
    shape = (rows * queries, sizes.hidden_size, sizes.intermediate_size)
    return Phase("audio_branch" if audio else "video_branch", done, "fp32", precision, shape)


def _llm_training(cfg: Config, llama: Llama, item: Item, rows: float) -> Iterator[Phase]:
    layers = llm_layers(cfg, llama, rows, item.length, context=item.length)
    head = llm_head(cfg, llama, rows * item.labelled, loss=True)
    yield layers
    if cfg.model.use_grad_checkpoint:
        # The last product of a layer is not needed for gradients, so it is not done again.
        down = linear(rows * item.length, llama.intermediate_size, llama.hidden_size)
        done = layers.work + down * (-llama.num_hidden_layers)
        yield replace(layers, part=f"{layers.part}, again", work=done)
    yield _backward(layers, frozen_backward(layers.work))
    yield head
    done = head.work
    yield _backward(head, Work(done.matmul, 0, 0, done.weights, done.launches))


def llm_layers(cfg: Config, llama: Llama, rows: float, length: int, *, context: int) -> Phase:
    """The layers of the language model on `length` new tokens of each of `rows` sequences."""
    return Phase(
        "language_model",
        work.llama_layers(llama, rows, length=length, context=context),
        llm_storage(cfg),
        cfg.model.precision,
        (rows * length, llama.hidden_size, llama.intermediate_size),
        QUANTISED_LAUNCHES[cfg.model.quantization],
    )


def llm_head(cfg: Config, llama: Llama, tokens: float, *, loss: bool) -> Phase:
    """The output layer, which is never quantised."""
    done, precision = work.llama_head(llama, tokens, loss=loss), cfg.model.precision
    shape = (tokens, llama.hidden_size, llama.vocab_size)
    return Phase("output_layer", done, precision, precision, shape)


def optimiser_phase(cfg: Config, llama: Llama) -> Phase:
    """AdamW: it reads weight, gradient and two moments and writes all but the gradient."""
    trained = trained_parameters(cfg, llama)
    return Phase("optimiser", Work(moved=7 * trained, launches=60), "fp32", "fp32", (1, 1, 1))


def trained_parameters(cfg: Config, llama: Llama) -> int:
    """Parameters with gradients."""
    counts, trained = parameters(cfg.model, llama), trained_groups(cfg.model)
    return sum(count for group, count in counts.items() if group in trained)


def _backward(phase: Phase, done: Work) -> Phase:
    return replace(phase, part=phase.part + BACKWARD, work=done)
