"""Writing a model for transformers: one folder that `from_pretrained` and `--weights` take."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict
from pathlib import Path

import video_llama.common.compat

import torch
import yaml
from transformers import GenerationConfig

from video_llama.apps.hf.model import VideoLlamaConfig, VideoLlamaModel
from video_llama.apps.hf.processor import VideoLlamaProcessor
from video_llama.models.video_llama import VideoLlama
from video_llama.models.weights.find import CONFIGURATION
from video_llama.text.templates import TEMPLATES
from video_llama.types import ConfigError

SHARD_SIZE = "5GB"

CARD = """\
---
library_name: transformers
pipeline_tag: any-to-any
tags: [video, audio, video-llama]
---

# Video-LLaMA

An audio-visual language model ([arXiv 2306.02858](https://arxiv.org/abs/2306.02858)), written by
`video-llama export hf`. `pip install video-llama`, then:

```python
from transformers import AutoModelForMultimodalLM, AutoProcessor

model = AutoModelForMultimodalLM.from_pretrained("{name}", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("{name}", trust_remote_code=True)
content = [{{"type": "video", "path": "clip.mp4"}}, {{"type": "text", "text": "What happens?"}}]
inputs = processor.apply_chat_template([{{"role": "user", "content": content}}])
ids = model.generate(**inputs, max_new_tokens=60, do_sample=False)
print(processor.batch_decode(ids[:, inputs["input_ids"].shape[1]:])[0].strip())
```

or `video-llama ask clip.mp4 "What happens?" --weights {name}`.

It was made of:

{parts}

The model makes mistakes: it names things that are not there, and a sound branch trained on pictures
hears what usually goes with them. The terms of the weights that it was made of apply.
"""


def export_hf(model: VideoLlama, folder: Path) -> None:
    """Write a model that was built from a configuration; all of the folder, or nothing.

    Raises:
        ConfigError: `folder` exists, or the LLM is quantised.
    """
    if folder.exists():
        raise ConfigError(f"{folder} exists; give another folder, or remove it")
    if model.settings.lora_r or model.settings.lora_ckpt:
        raise ConfigError(
            "model.lora_ckpt: merge the adapter first (`video-llama merge`), and export with "
            "model.llama_model set to the merged folder"
        )
    if model.settings.quantization != "none":
        raise ConfigError(
            "model.quantization: export the plain weights, without quantization; from_pretrained "
            "takes a quantization_config"
        )
    tokenizer = model.tokenizer
    manifest = {
        "files": [report.source.path.name for report in model.load_reports],
        "branches": [asdict(r.manifest) for r in model.load_reports if r.manifest],
        "stop_ids": TEMPLATES.get(model.settings.template).stop_ids(tokenizer),
    }
    config = VideoLlamaConfig.of(model, manifest)
    with torch.device("meta"):
        wrapped = VideoLlamaModel(config)
    wrapped.video_llama = model
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    wrapped.generation_config = GenerationConfig(bos_token_id=tokenizer.bos_token_id, **ends)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        wrapped.save_pretrained(partial, max_shard_size=SHARD_SIZE)
        source = Path(model.settings.llama_model)
        VideoLlamaProcessor(config, source).save_pretrained(partial)
        text = yaml.safe_dump(config.configuration, sort_keys=False, allow_unicode=True)
        (partial / CONFIGURATION).write_text(text, "utf-8")
        parts = "\n".join(f"* {line}" for line in _parts(model))
        (partial / "README.md").write_text(CARD.format(name=folder.name, parts=parts), "utf-8")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _parts(model: VideoLlama) -> list[str]:
    named = [Path(model.settings.llama_model).name]
    for report in model.load_reports:
        made = report.manifest
        detail = f": {made.branch} branch, stage {made.stage}, step {made.step}" if made else ""
        named.append(f"{report.source.path.name}{detail}")
    return named
