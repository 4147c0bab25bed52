"""Read a YAML and the overrides of a command line into a checked `Config`: `load_config`.

PyYAML parses, OmegaConf reads numbers and interpolations, `schema` makes typed objects of the
values. Whatever is wrong becomes one `ConfigError` that names the file and line, or the override.
Torch-free.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from video_llama.common.io import default_config_path, resource
from video_llama.common.registry import suggestion
from video_llama.config.schema import Config, ConfigWarning, config_of, first_line
from video_llama.models.settings import WEIGHT_KEYS
from video_llama.types import ConfigError

if TYPE_CHECKING:
    from video_llama.models.weights.find import Inventory

try:
    from yaml import CSafeLoader as Loader
except ImportError:  # PyYAML was built without libyaml
    from yaml import SafeLoader as Loader

MAX_BYTES = 1 << 20
MAX_OVERRIDE = 4096
MAX_DEPTH = 16
"""Names in the key of an override; settings have at most six."""
MAX_SHOWN = 200

_ALTERNATIVES = re.compile(r"""(["'])[^"']*\1\s+or\s+\S""")


def load_config(
    path: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    weights: str | Path | None = None,
) -> Config:
    """Read, complete and check a configuration. Only `weights` lets files be looked for.

    Args:
        path: the YAML; None: the shipped one that fits `weights`, or the tiny preset's.
        overrides: `section.key=value` each, applied in order; the value is YAML, or else text.
            `datasets.NAME=null` leaves a data set of the file out, and so does null for the only
            path of its `build_info`.
        weights: folder whose files take the place of the YAML's (`model.weights`); a path that is
            an override stays.

    Raises:
        ConfigError: the file or an override is wrong; names the file and line (or the override),
            the full key, what was given and what is valid. Or the folder lacks a part.
    """
    inventory = None if weights is None else _inventory(weights)
    origin: _Origin = "given"
    if path is None:
        path = inventory.configuration() if inventory else default_config_path()
        is_own = inventory is not None and Path(path).is_relative_to(inventory.folder)
        origin = "exported" if is_own else "shipped"
    source = YamlSource(Path(path), overrides)
    # What is wrong with a folder of the command line has no place in the YAML.
    with source.locating() if inventory is None else nullcontext():
        _fill_paths(source, inventory, origin)
    # The schema knows keys and not places: its messages begin with a key, whose place is added.
    with source.locating():
        config, notes = config_of(source.values)
    for key, note in notes:
        warnings.warn(f"{source.where(key)}: {key} {note}", ConfigWarning, stacklevel=2)
    config.model.prompt_path = _shipped_if_absent(config.model.prompt_path, Path(path))
    return config


_Origin = Literal["given", "shipped", "exported"]
"""Who chose a YAML: the user, the files in a folder, or the one who exported that folder."""


def _inventory(folder: str | Path) -> Inventory:
    # Torch reads the names in weight files: imported only where there are any to read.
    from video_llama.models.weights.find import find_weights

    return find_weights(Path(folder))


def _fill_paths(source: YamlSource, inventory: Inventory | None, origin: _Origin) -> None:
    """Give every weight path of the YAML the file of that part in the folder of `model.weights`."""
    model = source.values.get("model")
    if not isinstance(model, dict):
        return
    if inventory is None and isinstance(model.get("weights"), str):
        inventory = _inventory(model["weights"])
    if inventory is None:
        return
    model["weights"] = str(inventory.folder)
    given = source.overridden("model")
    # A part whose path the YAML leaves away is not wanted (a stage 1 starts without branches),
    # unless it leaves all of them to the folder.
    wanted = [key for key in WEIGHT_KEYS if model.get(key)]
    wanted = wanted or [key for key in WEIGHT_KEYS if key != "llama_proj_model"]
    paths: dict[str, Path | None] = {}
    if model.get("equip_audio_branch") is False:
        paths = dict.fromkeys(("imagebind_ckpt_path", "ckpt_2"))
    found = inventory.paths(key for key in wanted if key not in {*given, *paths})
    paths |= found
    model |= {key: path and str(path) for key, path in paths.items() if key not in given}
    # An exported model says its conversation format in its YAML.
    if origin == "exported" or given & {"model_type", "template"}:
        return
    template = inventory.template(found)
    if template:
        model["model_type"] = {"vicuna": "pretrain_vicuna"}.get(template, "pretrain_llama_v2")
    elif origin == "shipped":
        raise ConfigError(
            f"model.weights: nothing in {inventory.folder} says with which conversation format its "
            "language model was trained; add --options model.model_type=pretrain_llama_v2 "
            "(LLaMA-2-chat) or model.model_type=pretrain_vicuna (Vicuna, BiLLa, Ziya)"
        )


class YamlSource:
    """A YAML file with overrides put over it.

    Attributes:
        values: the merged content, interpolations as they are written.

    Raises:
        ConfigError: the file cannot be read, it is not a YAML with a mapping at the top, or an
            override is not `section.key=value`.
    """

    def __init__(self, path: Path, overrides: Sequence[str] = ()) -> None:
        self._path = path
        self._overrides: tuple[str, ...] = ()
        text = _read_text(path)
        try:
            self._root = yaml.compose(text, Loader=Loader)  # kept for the line of every key
            self.values = self._parse_mapping(text)
        except yaml.YAMLError as error:
            raise ConfigError(_explain_yaml_error(path, text, error)) from error
        except OmegaConfBaseException as error:  # `${` without end
            key = str(error.full_key or "")
            raise ConfigError(f"{self.where(key)}: {key}: {first_line(error)}") from error
        except _ODD_VALUE as error:
            raise ConfigError(f"{path}: not YAML: {first_line(error)}") from error
        self._overrides = tuple(overrides)
        # Later overrides win, and only what is left at the end says whether a data set has data.
        in_file = list(self.values.get("datasets") or ())
        for override in self._overrides:
            _apply(override, self.values)
        for override in self._overrides:
            self._leave_out(override, in_file)

    def where(self, key: str) -> str:
        """Return `x.yaml:12`, or the override that gave `key`; the bare file for a key it lacks."""
        # The last override that gave the key, or a part of it, goes before the file.
        for override in reversed(self._overrides):
            name = override.partition("=")[0]
            if name == key or name.startswith(f"{key}.") or key.startswith(f"{name}."):
                return f"override {override!r}"
        node, line = self._root, ""
        for part in key.split("."):  # as deep as the file goes: a missing key has its section's
            pairs = node.value if isinstance(node, yaml.MappingNode) else []
            name_node, node = next(((k, v) for k, v in pairs if k.value == part), (None, None))
            if name_node is None:
                break
            line = f":{name_node.start_mark.line + 1}"
        return f"{self._path}{line}"

    def overridden(self, section: str) -> set[str]:
        """Return the keys of a section that an override gives."""
        names = (override.partition("=")[0].strip().split(".") for override in self._overrides)
        return {name[1] for name in names if len(name) > 1 and name[0] == section}

    @contextmanager
    def locating(self) -> Iterator[None]:
        """Put the place of the key before errors, whose messages start with `full.key: `."""
        try:
            yield
        except ConfigError as error:
            raise ConfigError(f"{self.where(str(error).partition(': ')[0])}: {error}") from error

    def _parse_mapping(self, text: str) -> dict[str, Any]:
        if not isinstance(self._root, yaml.MappingNode | None):
            line = self._root.start_mark.line + 1
            raise ConfigError(
                f"{self._path}:{line}: the top level is a {self._root.id}, a mapping with the "
                "sections model, datasets and run expected"
            )
        return _parse(text) if self._root else {}

    def _leave_out(self, override: str, in_file: list[str]) -> None:
        """Remove a data set that an override sets to null, or whose only path it does."""
        key, _, text = override.partition("=")
        section, name, *below = [*key.strip().split("."), ""]
        entries = self.values.get(section)
        if section != "datasets" or not isinstance(entries, dict) or text.strip() not in _NULLS:
            return
        if below == [""]:
            if name not in in_file:
                raise ConfigError(
                    f"override {override!r}: leaves out a data set that is not there; "
                    f"{suggestion(name, in_file)}"
                )
            entries.pop(name, None)
        # After all overrides: a later one may give another path.
        elif below[0] == "build_info" and below[1:] in ([""], ["anno_dir", ""], ["storage", ""]):
            paths = (entries.get(name) or {}).get("build_info") or {}
            if name in in_file and not (paths.get("anno_dir") or paths.get("storage")):
                entries.pop(name, None)


_NULLS = ("", "~", "null")
_ODD_VALUE = (ValueError, IndexError, RecursionError)
"""What PyYAML lets through: `!!int ""`, numbers of thousands of digits, deep nesting."""


def _parse(text: str) -> dict[str, Any]:
    values = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    return {str(key): value for key, value in values.items()} if isinstance(values, dict) else {}


def _read_text(path: Path) -> str:
    try:
        if not path.exists():
            raise ConfigError(f"{path}: no such file (looked in {path.absolute().parent})")
        if not path.is_file():
            kind = "a folder" if path.is_dir() else "a device or pipe"
            raise ConfigError(f"{path}: {kind} given, a YAML file expected")
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(
                f"{path}: more than {MAX_BYTES} bytes given, fewer expected; "
                "is this a configuration?"
            )
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: byte {error.start} is not UTF-8 text; save the file as UTF-8"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def _explain_yaml_error(path: Path, text: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"{path}: not YAML: {' '.join(str(error).split())}"
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    problem = str(getattr(error, "problem", None) or error)
    # What people copy from the original's YAMLs, or type, and what to do about it.
    hint = ""
    if _ALTERNATIVES.search(line):
        hint = '; "a" or "b" leaves the choice to you: keep one of the two values'
    elif "\t" in line and ("tab" in problem or "start any token" in problem):
        hint = "; indent with spaces, not with tabs"
    elif "duplicate key" in problem:
        hint = "; it stands in this mapping before: keep one of the two"
    shown = line.strip()[:MAX_SHOWN]
    return f"{path}:{mark.line + 1}: not YAML: {problem}: {shown!r}{hint}"


def _apply(override: str, values: dict[str, Any]) -> None:
    """Put the value of `section.key=value` into the values of the file."""
    if len(override) > MAX_OVERRIDE:
        raise ConfigError(
            f"override {override[:40]!r}...: {len(override)} letters given, at most "
            f"{MAX_OVERRIDE} expected"
        )
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not 2 <= len(names) <= MAX_DEPTH or not all(names):
        raise ConfigError(f"override {override!r}: section.key=value expected")
    # Sections that the file leaves out are made: the schema refuses those that do not exist.
    node = values
    for name in names[:-1]:
        if node.get(name) is None:
            node[name] = {}
        node = node[name]
        if not isinstance(node, dict):
            raise ConfigError(
                f"override {override!r}: {name} is {node!r}, not a section; "
                "replace a list as a whole: section.key=[a, b]"
            )
    node[names[-1]] = _override_value(text, override)


def _override_value(text: str, override: str) -> Any:
    """Read `text` as YAML; text that is not YAML, or a comment to YAML, stands for itself."""
    try:
        value = _parse(f"value: {text}")["value"]
    except (OmegaConfBaseException, RecursionError) as error:
        raise ConfigError(f"override {override!r}: {first_line(error)}") from error
    except (yaml.YAMLError, *_ODD_VALUE) as error:
        if "nesting depth" in str(error):
            raise ConfigError(f"override {override!r}: nested too deeply") from error
        return text
    return text if value is None and text.strip() not in _NULLS else value


def _shipped_if_absent(name: str | None, yaml_path: Path) -> str | None:
    """Return `name`, or else the file of that name near the YAML or shipped with the project."""
    if not name or Path(name).exists():
        return name
    # A YAML of the project names its prompts from the project's root, wherever it is started.
    folder = yaml_path.absolute().parent
    for candidate in (folder / name, folder.parent / name):
        if candidate.exists():
            return str(candidate)
    try:
        return str(resource(name))
    except FileNotFoundError:
        return name
