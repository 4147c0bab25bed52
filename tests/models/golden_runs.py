"""Our model on the golden inputs: the outputs of each case under the names of the original's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from tests.golden_model import build_golden, golden, golden_model
from video_llama.models import video_llama as composition
from video_llama.models.generation.cache import cache_arguments
from video_llama.models.qformer import TemporalQFormer
from video_llama.models.video_llama import VideoLlama
from video_llama.text.captions import caption_inputs
from video_llama.text.tokenizer import encode_text
from video_llama.types import IGNORE_INDEX, Batch, CaptionBatch, InstructionBatch

Outputs = dict[str, Tensor]

CAPTIONS = ["a brown dog rides a skateboard", "the car is red"]
WEIGHT_DECAY = 0.05


@contextmanager
def recording(modules: dict[str, nn.Module], into: Outputs) -> Iterator[None]:
    """Keep the output of each module under its name while the block runs."""
    with ExitStack() as stack:
        for name, module in modules.items():

            def keep(_: nn.Module, args: Any, output: Any, name: str = name) -> None:
                into[name] = getattr(output, "last_hidden_state", output)

            stack.callback(module.register_forward_hook(keep).remove)
        yield


@contextmanager
def recording_reads(branch: TemporalQFormer, name: str, into: Outputs) -> Iterator[None]:
    """Keep what the temporal Q-Former attends to. We pass no mask, which means all ones."""

    def keep(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        features = kwargs["encoder_hidden_states"]
        assert kwargs.get("encoder_attention_mask") is None
        into[f"{name}.encoder_hidden_states"] = features
        into[f"{name}.encoder_attention_mask"] = torch.ones(features.shape[:2])

    handle = branch.qformer.register_forward_pre_hook(keep, with_kwargs=True)
    yield
    handle.remove()


@torch.no_grad()
def encode_video_outputs(case: str) -> Outputs:
    model, outputs = golden_model(), Outputs()
    assert model.vision_encoder is not None
    assert model.frame_qformer is not None
    vit, branch = model.vision_encoder.vit, model.video_branch
    modules = {
        "vit_patch_embed": vit.patch_embed,
        "vit_block0": vit.blocks[0],
        "vit_out": vit.norm,
        "ln_vision": model.vision_encoder.norm,
        "qformer_out": model.frame_qformer,
        "video_qformer_out": branch.qformer,
        "llama_proj_out": branch.proj,
    }
    with recording(modules, outputs), recording_reads(branch, "video_qformer_in", outputs):
        tokens = model.encode_video(golden().input(f"{case}/in_image"))
    return {**outputs, "inputs_llama": tokens, "atts_llama": torch.ones(tokens.shape[:2])}


@torch.no_grad()
def encode_audio_outputs(case: str) -> Outputs:
    model, outputs = golden_model(), Outputs()
    encoder, branch = model.audio_encoder, model.audio_branch
    assert encoder is not None
    assert branch is not None
    modality: Any = "audio" if "/audio" in case else "vision"
    modules = {
        f"ib_{modality}_tokens": encoder.modality_preprocessors[modality],
        f"ib_{modality}_trunk": encoder.modality_trunks[modality],
        "audio_qformer_out": branch.qformer,
        "audio_llama_proj_out": branch.proj,
    }
    media = golden().input(f"{case}/in_audio")
    with recording(modules, outputs), recording_reads(branch, "audio_qformer_in", outputs):
        tokens = model.encode_audio(media, modality)
    # Ours normalises the class token alone; the original all tokens, of which it reads that one.
    head_norm = encoder.get_submodule(f"modality_heads.{modality}.0")
    outputs[f"ib_{modality}_head_ln"] = head_norm(outputs[f"ib_{modality}_trunk"])
    pooled, embeddings = encoder.embeddings(media, modality)
    features = {"get_audio_feature_0": pooled, "get_audio_feature_1": embeddings}
    atts = torch.ones(tokens.shape[:2])
    return {**outputs, **features, "inputs_llama": tokens, "atts_llama": atts}


@torch.no_grad()
def prompt_wrap_outputs(case: str) -> Outputs:
    """A prompt around a picture, without the BOS before and the caption after it."""
    model = golden_model()
    media = model.encode_video(golden().input("encode_video/image1/in_image"))
    ids, labels, _ = caption_inputs(
        model.tokenizer,
        CAPTIONS,
        prompt=golden().texts["prompt_list"][int(case.partition("/")[2])],
        num_media_tokens=media.shape[1],
        end_sym="###",
        max_txt_len=32,
    )
    unlabelled = int((labels[0] != IGNORE_INDEX).nonzero()[0])
    wrapped = model.embed(ids, media)[:, 1:unlabelled]
    return {"wrapped": wrapped, "atts": torch.ones(wrapped.shape[:2])}


def caption_batch(case: str) -> CaptionBatch:
    """The batch of `forward_caption/<media>/<prompt>`."""
    media, _, prompt = case.rpartition("/")
    return CaptionBatch(
        pixel_values=golden().input(f"{media}/in_image"),
        captions=CAPTIONS,
        prompt=golden().texts["prompt_list"][1] if prompt == "prompt1" else None,
    )


def instruction_batch(case: str) -> InstructionBatch:
    """The batch of `forward_multi/<template>/<flag>/<media>`."""
    arrays = golden().case(case)
    return InstructionBatch(
        pixel_values=golden().input(f"{case}/in_images"),
        input_ids=arrays["in_input_ids"].whole().long(),
        labels=arrays["in_labels"].whole().long(),
        attention_mask=arrays["in_attention_mask"].whole().bool(),
    )


def forward_outputs(case: str, batch: Batch) -> Outputs:
    """One training step without the update."""
    branch: Any = "audio" if "/al_" in case or "/flag1" in case else "video"
    model, outputs = golden_model(branch), Outputs()
    model.zero_grad()
    modules = {"llama_proj_out": model.video_branch.proj} if branch == "video" else {}
    with (
        recording(modules, outputs),
        patch.object(composition, "causal_loss", wraps=composition.causal_loss) as loss,
    ):
        outputs["loss"] = model(batch).loss
    outputs["loss"].backward()
    _, embeddings, labels, mask = loss.call_args.args
    outputs |= {
        "llama_in.inputs_embeds": embeddings,
        "llama_in.labels": labels,
        "llama_in.attention_mask": mask,
        **_language_model_outputs(model, embeddings, mask),
        **_gradients(model, case),
    }
    if isinstance(batch, InstructionBatch):
        outputs["in_input_ids"] = batch.input_ids
        outputs["in_labels"], outputs["in_attention_mask"] = batch.labels, batch.attention_mask
    return outputs


@torch.no_grad()
def _language_model_outputs(model: VideoLlama, embeddings: Tensor, mask: Tensor) -> Outputs:
    # With the mask, as the original: our training leaves it out, which changes padding alone.
    llm = model.language_model
    hidden = llm.model(inputs_embeds=embeddings, attention_mask=mask.long()).last_hidden_state
    unmasked = llm.model(inputs_embeds=embeddings).last_hidden_state
    assert torch.allclose(hidden[mask.bool()], unmasked[mask.bool()], atol=1e-5)
    return {"llama_hidden": hidden, "llama_logits": llm.lm_head(hidden)}


def _gradients(model: VideoLlama, case: str) -> Outputs:
    gradients = {}
    for name, parameter in model.trainable_parameters():
        assert parameter.grad is not None, name
        gradients[name] = parameter.grad
    norms = torch.stack([gradients[name].norm() for name in sorted(gradients)])
    wanted = [name.removeprefix("grad:") for name in golden().case(case) if name[:5] == "grad:"]
    return {"grad_norms": norms, **{f"grad:{name}": gradients[name] for name in wanted}}


@torch.no_grad()
def chat_outputs(case: str) -> Outputs:
    """An answer from the prompt's text and the media: greedy, with beams, and step by step."""
    llm = golden_model().language_model
    context = _chat_context(case)
    greedy = llm.generate(inputs_embeds=context, max_new_tokens=24)
    beams = llm.generate(
        inputs_embeds=context, max_new_tokens=12, num_beams=3, repetition_penalty=1.2
    )
    kept = cache_arguments(DynamicCache(config=llm.config))
    steps = llm(inputs_embeds=context, **kept)
    logits = [steps.logits[:, -1]]
    while len(logits) < 8:
        token = logits[-1].argmax(dim=-1, keepdim=True)
        steps = llm(input_ids=token, **kept)
        logits.append(steps.logits[:, -1])
    step_logits = torch.stack(logits, dim=1)
    return {
        "context_emb": context,
        # transformers 4.28 put a BOS before the generated ids.
        "greedy_ids": nn.functional.pad(greedy, (1, 0), value=1),
        "beam3_rep1p2_ids": nn.functional.pad(beams, (1, 0), value=1),
        "manual_step_logits": step_logits,
        "manual_ids": step_logits[0].argmax(dim=-1),
    }


def _chat_context(case: str) -> Tensor:
    """BOS and the prompt's pieces with the media between them, sound before pictures."""
    model = golden_model()
    media = [model.encode_video(golden().input("encode_video/video8/in_image"))]
    if case.endswith("audiovideo"):
        media.insert(0, model.encode_audio(golden().input("encode_audio/audio8/in_audio")))
    first, *rest = golden().texts[f"{case} prompt"].split("<ImageHere>")
    ids = [model.tokenizer.bos_token_id, *encode_text(model.tokenizer, first, parse_special=True)]
    for tokens, text in zip(media, rest, strict=True):
        ids += [model.media_token_id] * tokens.shape[1]
        ids += encode_text(model.tokenizer, text, parse_special=True)
    return model.embed(torch.tensor([ids]), torch.cat(media, dim=1))


def train_trace_outputs(case: str) -> Outputs:
    """Six AdamW steps on one batch with the recorded learning rates."""
    arrays = golden().case(case)
    branch: Any = "video" if case.endswith("vl") else "audio"
    batch = caption_batch(
        f"forward_caption/{'vl_video5' if branch == 'video' else 'al_image4d'}/noprompt"
    )
    model = build_golden(branch)
    parameters = dict(model.trainable_parameters())
    plain = [
        name for name, p in parameters.items() if p.ndim < 2 or _has_any(name, "bias", "ln", "bn")
    ]
    groups = [
        {
            "params": [p for n, p in parameters.items() if n not in plain],
            "weight_decay": WEIGHT_DECAY,
        },
        {"params": [parameters[name] for name in plain], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999))
    losses = []
    for rate in arrays["lrs"].whole().tolist():
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss = model(batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    finals = {f"final:{name}": parameters[name] for name in parameters}
    return {
        "losses": torch.stack(losses),
        "lrs": arrays["lrs"].whole(),
        **{name: finals[name] for name in arrays if name.startswith("final:")},
    }


def _has_any(name: str, *parts: str) -> bool:
    return any(part in name for part in parts)
