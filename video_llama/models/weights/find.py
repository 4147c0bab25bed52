"""Finding out what the weight files of a folder are: one folder in the place of seven paths.

A file is told by its keys, shapes and manifest, whatever its name is. Only headers are read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from video_llama.common.io import default_config_path, resource
from video_llama.models.weights.checks import exported_weights, llama_values
from video_llama.models.weights.files import WeightFile, format_of, open_weights
from video_llama.models.weights.names import PARTS
from video_llama.models.weights.save import Manifest
from video_llama.types import ConfigError, WeightsError

CONFIGURATION = "video_llama.yaml"
"""File of an exported folder with all settings but paths."""
SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
"""Of weight files, readable or not; files of other names are told by their first bytes."""
MAX_FILES = 1000
"""Most weight files of a folder: more are a store of many models."""
MAX_ENTRIES = 100_000
"""Most files and folders that are looked at: more are a disk and not a model."""
MAX_WHOLE = 100e6
"""Largest file, bytes, that is read whole where its format does not allow less."""
RELEASED_VISION_WIDTH, TINY_VISION_WIDTH = 1408, 128


_MARKS = {
    "vit_ckpt": ("patch_embed.proj.weight", "visual_encoder.patch_embed.proj.weight"),
    "q_former_model": ("query_tokens",),
    "imagebind_ckpt_path": (
        "modality_preprocessors.vision.cls_token",
        "audio_encoder.modality_preprocessors.vision.cls_token",
    ),
    "ckpt": ("video_query_tokens",),
    "ckpt_2": ("audio_query_tokens",),
}
"""Tensors, one of which only a file with the part holds."""
_WIDTHS = {
    "vit_ckpt": ("patch_embed.proj.weight", "visual_encoder.patch_embed.proj.weight"),
    "llama_proj_model": ("llama_proj.weight",),
    "ckpt": ("llama_proj.weight",),
    "ckpt_2": ("audio_llama_proj.weight",),
}
"""Tensors whose first side is the width: of the vision transformer, or of the LLM that is fed."""
_META = "layers.0.attention.wq.weight"
_FAMILIES = {
    "vicuna": ("vicuna", "billa", "ziya"),
    "llama_v2": ("llama-2", "llama2", "llama_2"),
}
"""Conversation format to the words in the names of what was trained with it."""
_SHARD = re.compile(r"(pytorch_)?model(-\d+-of-\d+)?\.(bin|safetensors)")
"""Names of an LLM's weights in its folder."""


@dataclass(frozen=True)
class FoundPart:
    """A part that a file or folder holds."""

    key: str
    """Of the `model` section."""
    path: Path
    """The file, or the folder of the language model."""
    width: int | None = None
    """Of the vision transformer, or of the language model that it is or feeds."""
    detail: str = ""
    """Size, stage and template, as far as they are known."""
    template: str | None = None
    """Conversation format that it was trained with, as it says itself."""
    hint: str | None = None
    """Conversation format that its name stands for."""

    def __str__(self) -> str:
        return f"{PARTS[self.key].title} {self.path}{f' ({self.detail})' if self.detail else ''}"


@dataclass(frozen=True)
class Inventory:
    """What a folder holds."""

    folder: Path
    """That was looked into."""
    parts: Sequence[FoundPart]
    """In the order of `PARTS`; several of one key where there are several."""
    unusable: Sequence[str] = field(default=())
    """Files that could have been parts, each with the reason why it is none."""

    def of(self, key: str) -> list[FoundPart]:
        """Return the candidates for a part that fit the others."""
        found = [part for part in self.parts if part.key == key]
        # A folder may hold both sizes of the LLM or of the branches: the others decide.
        if len(found) > 1 and (key in _FED or key == "llama_proj_model"):
            common = set.intersection(*self._llm_widths())
            fitting = [part for part in found if part.width in common]
            found = fitting if len(common) == 1 else found
        return found

    def _llm_widths(self) -> list[set[int]]:
        """Return the widths that the candidates for each part have or feed."""
        widths = [{p.width for p in self.parts if p.key == key and p.width} for key in _FED]
        return [each for each in widths if each]

    def configuration(self) -> Path:
        """Return the configuration of an exported folder, or the shipped one of these sizes.

        Raises:
            ConfigError: there is none.
        """
        exported = [part.path / CONFIGURATION for part in self.parts if part.key == "llama_model"]
        if len(exported) == 1 and exported[0].is_file():
            return exported[0]
        widths = {part.width for part in self.parts if part.key == "vit_ckpt"}
        if widths == {TINY_VISION_WIDTH}:
            return default_config_path()
        if widths <= {RELEASED_VISION_WIDTH}:
            hears = any(part.key in ("ckpt_2", "imagebind_ckpt_path") for part in self.parts)
            kind = "withaudio" if hears else "only_vl"
            return resource(f"eval_configs/video_llama_eval_{kind}.yaml")
        raise ConfigError(
            f"model.weights: {self.folder} has a vision transformer of a width that no shipped "
            f"configuration has ({', '.join(map(str, sorted(filter(None, widths))))}); give the "
            "configuration with --cfg-path"
        )

    def paths(self, keys: Iterable[str]) -> dict[str, Path]:
        """Return the file of each part that is wanted.

        Args:
            keys: of the `model` section.

        Raises:
            ConfigError: a part is missing or there are several of it, or the parts are of
                different sizes; lists all that is wrong and all that was found.
        """
        chosen, problems = {}, []
        for key in keys:
            part, candidates = PARTS[key], self.of(key)
            if len(candidates) == 1:
                chosen[key] = candidates[0]
            elif candidates:
                several = " and ".join(self._name(c) for c in candidates)
                problems.append(
                    f"{len(candidates)} candidates for the {part.title}: {several}; take all but "
                    f"one out, or name it with --options model.{key}=..."
                )
            else:
                problems.append(
                    f"no {part.title} (released as {part.public_name}, from {part.source})"
                )
        problems += self._mismatches(chosen)
        if problems:
            found = ", ".join(f"{PARTS[p.key].title} {self._name(p)}" for p in self.parts)
            unusable = f"; not usable: {'; '.join(self.unusable)}" if self.unusable else ""
            raise ConfigError(
                f"model.weights: {self.folder} has {'; '.join(problems)}. Found: "
                f"{found or 'no part of the model'}{unusable}"
            )
        return {key: part.path for key, part in chosen.items()}

    def template(self, paths: dict[str, Path]) -> str | None:
        """Return the conversation format of the chosen parts; None: they do not say.

        A branch may know what it was trained with; otherwise the names of files tell.

        Raises:
            ConfigError: they say different things.
        """
        chosen = [part for part in self.parts if paths.get(part.key) == part.path]
        known = {self._name(p): p.template for p in chosen if p.template}
        told = known or {self._name(p): p.hint for p in chosen if p.hint}
        if len(set(told.values())) > 1:
            signs = ", ".join(f"{name} is for {template}" for name, template in told.items())
            raise ConfigError(
                f"model.weights: {self.folder} mixes conversation formats: {signs}; take files "
                "that belong together, or say which format with --options "
                "model.model_type=pretrain_llama_v2 (or pretrain_vicuna)"
            )
        return next(iter(told.values()), None)

    def _mismatches(self, chosen: dict[str, FoundPart]) -> list[str]:
        llm = chosen.get("llama_model")
        return [
            f"a {PARTS[key].title} for an LLM of width {part.width} ({self._name(part)}), but the "
            f"language model {self._name(llm)} has width {llm.width}: they are of different sizes"
            for key, part in chosen.items()
            if llm and key != "vit_ckpt" and part.width and llm.width and part.width != llm.width
        ]

    def _name(self, part: FoundPart) -> str:
        detail = f" ({part.detail})" if part.detail else ""
        return f"{os.path.relpath(part.path, self.folder)}{detail}"


_FED = ("llama_model", "ckpt", "ckpt_2")
"""Parts that must have the width of one language model."""


def find_weights(folder: Path) -> Inventory:
    """Look through a folder for the parts of a model.

    Args:
        folder: of downloads, a clone or snapshot of a hub, a run's checkpoint, or all of these.

    Raises:
        ConfigError: it is no folder, or holds too many weight files.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ConfigError(f"model.weights: {folder} {what}; give the folder that holds the weights")
    parts: list[FoundPart] = []
    unusable: list[str] = []
    seen: set[Path] = set()
    for path in _candidates(folder):
        # A hub's snapshot links to its store: the same file is one candidate.
        real = path.resolve()
        if real in seen:
            continue
        seen.add(real)
        if len(seen) > MAX_FILES:
            raise ConfigError(
                f"model.weights: {folder} holds more than {MAX_FILES} weight files; give the "
                "folder of one model"
            )
        try:
            parts += identify(path)
        except (WeightsError, ConfigError) as error:
            unusable.append(str(error).removeprefix("model.llama_model: "))
    order = list(PARTS)
    parts = sorted(_newest_steps(parts), key=lambda part: order.index(part.key))
    return Inventory(folder, parts, unusable)


def identify(path: Path) -> list[FoundPart]:
    """Say which parts a weight file, or the folder of a language model, holds.

    Raises:
        WeightsError: the file cannot be read, or not without reading all of it.
        ConfigError: the folder's LLaMA cannot be used.
    """
    if path.is_dir():
        llm, weights = _language_model(path, llama_values(path)), exported_weights(path)
        return [llm, *identify(weights)] if weights else [llm]
    _refuse_old_format(path)
    file = open_weights(path)
    if _META in file.shapes:
        raise WeightsError(
            f"{path} is LLaMA as Meta releases it; the Hugging Face form is needed "
            "(config.json, tokenizer.model, *.safetensors)"
        )
    manifest = Manifest.of_file(file)
    keys = [key for key, marks in _MARKS.items() if any(mark in file.shapes for mark in marks)]
    # MiniGPT-4's file is a projection alone. Branches hold one, too.
    if not keys and "llama_proj.weight" in file.shapes:
        keys = ["llama_proj_model"]
    return [_part(key, file, manifest) for key in keys]


def _part(key: str, file: WeightFile, manifest: Manifest | None) -> FoundPart:
    widths = [file.shapes[name][0] for name in _WIDTHS.get(key, ()) if name in file.shapes]
    width = widths[0] if widths else None
    details = [f"for an LLM of width {width}"] if width and key != "vit_ckpt" else []
    if key not in _FED:
        return FoundPart(key, file.path, width, ", ".join(details))
    template, stage = _original_run(file.extras.get("config"))
    if manifest is not None:
        width, template, stage = width or manifest.llm_width, manifest.template, manifest.stage
    details += [f"stage {stage}"] if stage else []
    details += [template] if template else []
    details += [f"step {manifest.step}"] if manifest else []
    return FoundPart(
        key, file.path, width, ", ".join(details), template, _family(file.path.name.lower())
    )


def _original_run(config: Any) -> tuple[str | None, int | None]:
    """Return format and stage by the configuration in a checkpoint of the original's runner."""
    model = config.get("model") if isinstance(config, Mapping) else None
    if not isinstance(model, Mapping):
        return None, None
    # Captions of stage 1 have no prompts, and end in a newline whatever the format is.
    text = f"{model.get('prompt_template')} {model.get('end_sym')}"
    template = None
    if "###" in text:
        template = "vicuna"
    elif "[INST]" in text or "</s>" in text:
        template = "llama_v2"
    return template, 2 if model.get("prompt_path") else None


def _language_model(folder: Path, values: dict[str, Any]) -> FoundPart:
    if not (folder / "tokenizer.model").exists():
        raise ConfigError(f"{folder} has no tokenizer.model; its download is incomplete")
    width = values.get("hidden_size")
    size = {4096: "7B", 5120: "13B"}.get(width or 0, f"width {width}")
    # A snapshot's own name is a hash; the model's stands two folders above.
    path = folder.absolute()
    name = path.parents[1].name if path.parent.name == "snapshots" else path.name
    signs = (name, str(values.get("_name_or_path", "")))
    hint = next((family for sign in signs if (family := _family(sign.lower()))), None)
    hint = hint or _chat_family(folder / "tokenizer_config.json")
    detail = f"{size}, vocabulary {values.get('vocab_size')}" + (f", {hint}" if hint else "")
    return FoundPart("llama_model", folder, width, detail, None, hint)


def _family(name: str) -> str | None:
    """Return the conversation format that a name stands for."""
    families = (family for family, words in _FAMILIES.items() if any(w in name for w in words))
    return next(families, None)


def _chat_family(path: Path) -> str | None:
    """Return the conversation format of the chat template beside a tokenizer."""
    try:
        template = str(json.loads(path.read_text("utf-8")).get("chat_template"))
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return "llama_v2" if "<<SYS>>" in template else None


def _candidates(folder: Path) -> Iterator[Path]:
    """Yield LLM folders and weight files below a folder, each real folder once.

    Raises:
        ConfigError: there are too many files of any kind.
    """
    visited: set[str] = set()
    entries = 0
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        # Hidden folders and a hub's store of blobs hold nothing under its own name.
        folders[:] = sorted(n for n in folders if not n.startswith(".") and n != "blobs")
        if real in visited:  # a loop of links
            folders.clear()
            continue
        visited.add(real)
        entries += len(folders) + len(files)
        if entries > MAX_ENTRIES:
            raise ConfigError(
                f"model.weights: {folder} holds more than {MAX_ENTRIES:,} files; give the folder "
                "of one model"
            )
        here = Path(root)
        if here.name == "snapshots":  # of a hub: the revision that it stands at
            current = _line(here.parent / "refs/main")
            folders[:] = [current] if current in folders else folders
        is_llm = "config.json" in files and _is_llama(here)
        if is_llm:
            yield here
        for name in sorted(files):
            shard = is_llm and _SHARD.fullmatch(name)
            if not shard and (name.endswith(SUFFIXES) or format_of(here / name)):
                yield here / name


def _line(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except (OSError, ValueError):
        return ""


def _is_llama(folder: Path) -> bool:
    """Return whether a folder is meant as a LLaMA, usable or not."""
    try:
        values = llama_values(folder)
    except ConfigError as error:
        # Of other models and of unreadable configurations nothing needs to be said.
        return "quantised" in str(error)
    return "hidden_size" in values


def _newest_steps(parts: list[FoundPart]) -> Iterator[FoundPart]:
    """Leave out checkpoints of a run that has newer ones of the same part."""
    newest: dict[tuple[str, Path], str] = {}
    for part in parts:
        step = part.path.parent
        if step.name.startswith("step-"):
            place = (part.key, step.parent)
            newest[place] = max(newest.get(place, ""), step.name)
    for part in parts:
        step = part.path.parent
        if newest.get((part.key, step.parent), step.name) == step.name:
            yield part


def _refuse_old_format(path: Path) -> None:
    """Refuse a large pickle that cannot be mapped: its names come with all of its values."""
    if path.suffix == ".safetensors" or not path.is_file() or path.stat().st_size <= MAX_WHOLE:
        return
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    if not is_zip:
        raise WeightsError(
            f"{path} is a torch file of before 2020, which can only be read whole; make a new one "
            f"with `video-llama convert {path.name} {path.with_suffix('.safetensors').name}`"
        )
