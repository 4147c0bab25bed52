"""The chat engine: a model that several people may ask at once. Knows no user interface."""

from __future__ import annotations

from pathlib import Path

from video_llama.chat.answer import Answerer
from video_llama.chat.media import MediaEncoder, Progress
from video_llama.chat.session import Session
from video_llama.models.video_llama import VideoLlama
from video_llama.types import MediaKind, RequestError


class Chat:
    """A model that people ask about media, several at once.

    Its sessions may be used from any threads. They take turns token by token, in the order in which
    they come, and what they share is only ever read.

    Args:
        model: of `build_model`.
        cache_mb: bound on the memory of keys and values that idle sessions keep, together; beyond
            it the least recently used go, and their next turn computes its whole context.
        in_worker: decode files in a process that can be replaced when one ends it.

    Attributes:
        notices: what holds for every answer.

    Raises:
        RequestError: the model has shapes only.
    """

    def __init__(
        self, model: VideoLlama, *, cache_mb: float = 4096, in_worker: bool = True
    ) -> None:
        # `doctor` builds such a model. Found here it is a sentence, and later a crash.
        if model.device.type == "meta":
            raise RequestError(
                "run.device: meta given, which has shapes only and answers nothing; "
                "use run.device=auto or cpu"
            )
        self.model = model
        self.answerer = Answerer(model, cache_mb * 1e6)
        self.encoder = MediaEncoder(model, self.answerer.lock.turn, in_worker=in_worker)
        self.notices = _stage_notices(model)

    @property
    def hears(self) -> bool:
        """Whether there is an audio branch."""
        return self.model.audio_branch is not None

    @property
    def num_waiting(self) -> int:
        """How many wait for the model."""
        return self.answerer.lock.num_waiting

    def start(
        self,
        *,
        video: str | Path | None = None,
        image: str | Path | None = None,
        audio: str | Path | None = None,
        use_audio: bool = True,
        num_frames: int | None = None,
        num_clips: int | None = None,
        progress: Progress | None = None,
    ) -> Session:
        """Start a conversation about the given media, or none.

        Args:
            audio: a sound, or a clip of which only the sound is heard.
            use_audio: whether the sound of `video` is heard.
            num_frames: frames of a clip; None: as configured.
            num_clips: segments of a sound; None: as configured.
            progress: called with what is being done with the media.

        Raises:
            MediaError: a file cannot be used.
        """
        # Sessions know what they use, and not the chat: so imports point one way.
        session = Session(self.answerer, self.encoder, self.notices)
        # In this order they stand in the prompt, as in the original's chat.
        given: dict[MediaKind, str | Path | None] = {"video": video, "image": image, "audio": audio}
        for kind, path in given.items():
            if path is not None:
                session.add(
                    path,
                    kind,
                    use_audio=use_audio,
                    num_frames=num_frames,
                    num_clips=num_clips,
                    progress=progress,
                )
        return session


def _stage_notices(model: VideoLlama) -> list[str]:
    """Name branch files that cannot answer questions yet, and weights that are random."""
    notices = [
        f"{report.source.path.name} was saved after stage 1, which only learns captions; a chat "
        "expects a file of stage 2"
        for report in model.load_reports
        if report.manifest is not None and report.manifest.stage == 1
    ]
    if model.random_modules:
        notices.append(
            f"random weights in {', '.join(model.random_modules)}: the answers are nonsense"
        )
    return notices
