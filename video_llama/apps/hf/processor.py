"""The processor of `video_llama.hf`: messages with files to what the model takes."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import video_llama.common.compat

import torch
from einops import rearrange
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin
from transformers.utils.hub import cached_file

from video_llama.apps.hf.model import PICTURE, SOUND, STUB, STUB_TEXT, VideoLlamaConfig
from video_llama.chat.media import MediaProcessing
from video_llama.processors.decode import DecodedFile, decode_file
from video_llama.text.questions import Media, frames_message
from video_llama.text.templates import TEMPLATES, Turn
from video_llama.text.tokenizer import TOKENIZER_FILE, load_tokenizer
from video_llama.types import RequestError

_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")


class VideoLlamaProcessor(ProcessorMixin):
    """Messages with files to what the model takes, and ids to text.

    Args:
        config: of the exported folder.
        folder: that holds `tokenizer.model`; transformers' own file of it gives other ids.
    """

    attributes: ClassVar[list[str]] = []

    def __init__(self, config: VideoLlamaConfig, folder: str | Path) -> None:
        self.config, self.folder = config, Path(folder)
        self.tokenizer = load_tokenizer(folder)
        self.chat_template = None
        cfg = config.typed
        self._settings = cfg.model
        self._template = TEMPLATES.get(cfg.model.template)
        self._processing = MediaProcessing.of(cfg.model, cfg)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.folder)!r})"

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, path: str | Path, **options: Any
    ) -> VideoLlamaProcessor:
        """Load the processor of an exported folder, or of a repository's name."""
        hub = {name: options[name] for name in _HUB_OPTIONS if options.get(name) is not None}
        file = cached_file(str(path), TOKENIZER_FILE, **hub)
        return cls(VideoLlamaConfig.from_pretrained(path, **hub), Path(str(file)).parent)

    def save_pretrained(  # type: ignore[override]
        self, path: str | Path, **options: Any
    ) -> list[str]:
        """Write what `from_pretrained` needs."""
        folder = Path(path)
        self.config.save_pretrained(folder)
        if folder.resolve() != self.folder.resolve():
            shutil.copy(self.folder / TOKENIZER_FILE, folder)
        (folder / STUB).write_text(STUB_TEXT, "utf-8")
        return []

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoProcessor") -> None:
        """Do nothing, as for the model."""

    def __call__(
        self,
        images: Any = None,
        text: str | None = None,
        videos: Any = None,
        audio: Any = None,
        **options: Any,
    ) -> Any:
        """Make one question of files and a text; each of the first may be a path or a list."""
        given = {"video": videos, "image": images, "audio": audio}
        parts = [
            {"type": kind, "path": path}
            for kind, files in given.items()
            for path in (files if isinstance(files, list | tuple) else [files])
            if path is not None
        ]
        if not isinstance(text, str):
            raise RequestError(f"text: {text!r} given, one question expected")
        content = [*parts, {"type": "text", "text": text}]
        return self.apply_chat_template([{"role": "user", "content": content}], **options)

    def apply_chat_template(  # type: ignore[override]
        self, conversation: Sequence[Mapping[str, Any]], *, use_audio: bool = True, **options: Any
    ) -> Any:
        """Read the files of messages and write the prompt.

        Args:
            conversation: messages with a role (system, user, assistant) and a text, or a list of
                `{"type": "text", "text": ...}` and `{"type": "video", "path": ...}` (or image,
                audio).
            use_audio: whether clips are heard.
            options: transformers' own; `tokenize=False` gives the text.

        Raises:
            RequestError: a message or part that is not understood.
            MediaError: a file cannot be used.
        """
        system, turns, files = self._turns(conversation, use_audio)
        if not options.get("tokenize", True):
            return self._template.chat_text(turns, system=system)
        ids = torch.tensor([self._template.chat_ids(turns, self.tokenizer, system=system)])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **_packed(files)}
        return _Inputs(inputs)

    def batch_decode(self, sequences: Any, *_: Any, **__: Any) -> list[str]:
        """Write ids as text; media become nothing."""
        return [self.decode(row) for row in sequences]

    def decode(self, token_ids: Any, *_: Any, **__: Any) -> str:
        """Write ids as text, without the stop mark at its end."""
        ids = token_ids.tolist() if isinstance(token_ids, Tensor) else list(token_ids)
        known = [i for i in ids if i < self.config.text_config.vocab_size]
        text: str = self.tokenizer.decode(known, skip_special_tokens=True)
        for stop in self._template.stop_texts:
            text = text.removesuffix(stop)
        return text

    def post_process_multimodal_output(self, generated_outputs: Any, *_: Any, **__: Any) -> Any:
        """Write ids as text, as a pipeline asks for it."""
        return self.batch_decode(generated_outputs)

    def _turns(
        self, conversation: Sequence[Mapping[str, Any]], use_audio: bool
    ) -> tuple[str | None, list[Turn], list[DecodedFile]]:
        system: str | None = None
        turns: list[Turn] = []
        files: list[DecodedFile] = []
        for message in conversation:
            if not isinstance(message, Mapping):
                raise RequestError(f"{message!r} given, one conversation of messages expected")
            text, paths = _content(message)
            if message["role"] == "system":
                system = text
            elif message["role"] == "assistant" and turns and turns[-1].answer is None:
                turns[-1] = Turn(turns[-1].question, turns[-1].media, text)
            elif message["role"] == "user":
                read = [self._read(kind, path, use_audio) for kind, path in paths]
                files += read
                media = tuple(medium for file in read for medium in self._media(file))
                turns.append(Turn(text, media))
            else:
                raise RequestError(f"role {message['role']!r} given where it has no place")
        if not turns or turns[-1].answer is not None:
            raise RequestError("the last message is not the user's: there is nothing to answer")
        return system, turns, files

    def _read(self, kind: Any, path: str, use_audio: bool) -> DecodedFile:
        heard = self._settings.equip_audio_branch and (use_audio or kind == "audio")
        processing = self._processing
        return decode_file(
            path,
            kind,
            image=processing.image.build(),
            video=processing.video.build(),
            audio=processing.audio.build() if heard else None,
        )

    def _media(self, file: DecodedFile) -> Iterable[Media]:
        # The sound of a clip comes before its frames, as in the chat.
        if file.sound is not None:
            yield Media("audio", self._settings.num_audio_query_token)
        if file.picture is not None:
            yield Media("image", self._settings.num_video_query_token)
        if file.clip is not None:
            message = frames_message(file.clip.seconds)
            yield Media("video", self._settings.num_video_query_token, message)


def _packed(files: Sequence[DecodedFile]) -> dict[str, Tensor]:
    """Lay the media of a prompt one behind the other, with their lengths and order."""
    pictures, sounds, kinds = [], [], []
    for file in files:
        if file.sound is not None:
            sounds.append(file.sound.values)
            kinds.append(SOUND)
        pixels = file.clip.pixel_values if file.clip is not None else None
        if file.picture is not None:
            pixels = rearrange(file.picture, "c h w -> c 1 h w")
        if pixels is not None:
            pictures.append(rearrange(pixels, "c t h w -> t c h w"))
            kinds.append(PICTURE)
    found: dict[str, Tensor] = {"media_kinds": torch.tensor(kinds)} if kinds else {}
    for values, counts, items in (
        ("pixel_values", "frame_counts", pictures),
        ("audio_values", "segment_counts", sounds),
    ):
        if items:
            found |= {values: torch.cat(items), counts: torch.tensor([len(i) for i in items])}
    return found


def _content(message: Mapping[str, Any]) -> tuple[str, list[tuple[Any, str]]]:
    """Return the text of a message, and kind and path of each of its files."""
    content, texts, paths = message["content"], [], []
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        kind = part.get("type")
        if kind == "text":
            texts.append(part["text"])
            continue
        path = next((part[key] for key in ("path", "url", str(kind)) if key in part), None)
        if kind not in ("image", "video", "audio") or not isinstance(path, str | Path):
            raise RequestError(
                f"a part of type {kind!r} with {sorted(part)} given; text, or the path of an "
                "image, video or audio expected"
            )
        paths.append((kind, str(path)))
    return "".join(texts), paths


class _Inputs(BatchFeature):
    """Inputs that keep their number types: a pipeline would cast all of them to the LLM's."""

    def to(self, *args: Any, **options: Any) -> _Inputs:
        options.pop("dtype", None)
        moved = [arg for arg in args if not isinstance(arg, torch.dtype)]
        super().to(*moved, **options)
        return self
