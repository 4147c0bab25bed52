"""What the studies train and compare: trainings of branches, arms made of two of them, questions.

Runs share what they can: a training is run once for each seed, whichever arms have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from video_llama.apps.evaluate.questions import Condition
from video_llama.config.load import load_config
from video_llama.models.settings import Branch
from video_llama.synthetic.quickstart.stages import STAGES, Stage
from video_llama.synthetic.splits import Split

SOUND_SET = "audio_caption"
"""The data set of the world that is heard and not seen."""


@dataclass(frozen=True, kw_only=True)
class BranchTraining:
    """A training of one branch."""

    name: str
    """Name of its folder."""
    branch: Branch
    options: tuple[str, ...] = ()
    """What is changed in the YAMLs of its stages, `section.key=value` each."""
    numbers: tuple[int, ...] = (1, 2)
    """Stages that it goes through."""
    on_sound: bool = False
    """Whether it is trained on sounds and captions alone, not on the data sets of the YAMLs."""

    def stages(self) -> list[Stage]:
        """Return its stages in order."""
        return [s for s in STAGES if s.branch == self.branch and s.number in self.numbers]

    def options_of(self, stage: Stage, data: Path) -> list[str]:
        """Return what is changed in the YAML of one of its stages, with the world in `data`."""
        if not self.on_sound:
            return list(self.options)
        # The data sets of the YAML are dropped, and the one of sounds takes their place.
        sounds = (data / "train" / SOUND_SET).absolute()
        place = f"{{anno_dir: '{sounds}/{SOUND_SET}.json', videos_dir: '{sounds}/audio'}}"
        return [
            *self.options,
            *(f"datasets.{name}=null" for name in load_config(stage.config_path).datasets),
            f"datasets.{SOUND_SET}={{build_info: {place}}}",
            "model.prompt_path=null",  # those of stage 2 ask what is in a picture
        ]


def _ablated(branch: Branch, name: str, *options: str, **fields: Any) -> BranchTraining:
    return BranchTraining(name=f"{branch}-{name}", branch=branch, options=options, **fields)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A model to score."""

    name: str
    title: str
    """What the tables call it."""
    trainings: tuple[BranchTraining, ...] = ()
    """Of its branches; a branch without one keeps random values."""
    options: tuple[str, ...] = ()
    """`section.key=value` each, only for the model that answers."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A comparison of arms, each with every seed."""

    name: str
    arms: tuple[Arm, ...]
    """In the order of its tables."""
    question_types: Mapping[Condition, tuple[str, ...]]
    """Types of questions by what the model is given (`CONDITIONS`); no types: all of them."""
    splits: tuple[Split, ...] = ("test",)
    """Splits whose questions are asked, once everything is chosen."""

    def trainings(self) -> list[BranchTraining]:
        """Return every training of its arms, once."""
        return list(dict.fromkeys(training for arm in self.arms for training in arm.trainings))


VIDEO = BranchTraining(name="video", branch="video")
AUDIO = BranchTraining(name="audio", branch="audio")
"""The shipped YAMLs as they are; their position_init_std is NARROW."""
NARROW, WIDE = 0.2, 1.0
"""Initial scales of the positions: of the tiny preset, and of the original."""
WIDE_AUDIO = BranchTraining(
    name="audio-wide", branch="audio", options=(f"model.position_init_std={WIDE:g}",)
)
SOUND_TYPES = ("hear", "hear_nothing", "sound_order", "silent")
"""Questions that sound alone answers."""

# Two splits: triples of kind, colour and motion that training did not have, and pairs.
SEEDS = Study(
    name="seeds",
    arms=(
        Arm(name="trained", title="trained", trainings=(VIDEO, AUDIO)),
        Arm(name="untrained", title="random branches"),
    ),
    question_types={name: () for name in get_args(Condition)},
    splits=("test", "test_pairs"),
)

# ImageBind gives pictures the norm 1 whatever audio_feature_norm says, and the branch is trained on
# pictures only: so one training answers for both of its values.
SCALES = Study(
    name="scales",
    arms=tuple(
        Arm(
            name=f"positions-{std:g}-norm-{norm}",
            title=f"{std:g}, {norm}",
            trainings=(training,),
            options=(f"model.audio_feature_norm={norm}",),
        )
        for std, training in ((WIDE, WIDE_AUDIO), (NARROW, AUDIO))
        for norm in ("none", "unit")
    ),
    question_types={"sound": SOUND_TYPES},
)

# Each arm leaves one part of the method out and trains the rest as it is.
ABLATIONS = Study(
    name="ablations",
    arms=(
        Arm(name="full", title="full", trainings=(VIDEO, AUDIO)),
        Arm(
            name="no-positions",
            title="without frame position embedding",
            trainings=(
                _ablated("video", "no-positions", "model.video_frame_positions=false"),
                AUDIO,
            ),
        ),
        Arm(
            name="mean",
            title="without video Q-Former (mean pooling)",
            trainings=(_ablated("video", "mean", "model.video_fusion=mean"), AUDIO),
        ),
        Arm(
            name="no-stage-1",
            title="without stage 1",
            trainings=(
                _ablated("video", "no-stage-1", numbers=(2,)),
                _ablated("audio", "no-stage-1", numbers=(2,)),
            ),
        ),
        Arm(
            name="on-sound",
            title="audio branch trained on sound instead of pictures",
            trainings=(VIDEO, _ablated("audio", "on-sound", on_sound=True)),
        ),
    ),
    question_types={
        "all": ("kind", "colour", "motion", "count", "order", "see", "hear"),
        "sound": SOUND_TYPES,
    },
)

STUDIES = {study.name: study for study in (SEEDS, SCALES, ABLATIONS)}
"""The studies by their names."""
