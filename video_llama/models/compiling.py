"""torch.compile for the repeated blocks of the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from video_llama.models.video_llama import VideoLlama


def compile_blocks(model: VideoLlama, parts: Sequence[str]) -> None:
    """Compile the blocks of some parts at their first use, each on its own.

    Blocks of a kind share their code, so that a deep part takes no longer than a shallow one, and
    names of parameters stay as they are.

    Args:
        model: changed in place.
        parts: of `COMPILED_PARTS`; those that the model lacks are passed over.
    """
    for part in parts:
        for block in _blocks(model, part):
            block.compile()


def _blocks(model: VideoLlama, part: str) -> Iterator[nn.Module]:
    if part == "language_model":
        yield from model.language_model.model.layers
    elif part == "vision_encoder" and model.vision_encoder is not None:
        yield from model.vision_encoder.vit.blocks
    elif part == "qformers":
        for qformer in (model.frame_qformer, model.video_branch, model.audio_branch):
            if qformer is not None:
                yield from qformer.get_submodule("qformer.encoder.layer").children()
