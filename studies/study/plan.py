"""What the studies train and compare: recipes of the branches, arms made of two of them, questions.

Runs share what they can: a recipe is trained once for each seed, whichever arms have it.
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
class Recipe:
    """A training of one branch.

    Attributes:
        name: of its folder.
        branch: what is trained.
        options: what is changed in the YAMLs of its stages.
        numbers: of the stages that it goes through.
        on_sound: on sounds and their captions alone, instead of the data sets of the YAMLs.
    """

    name: str
    branch: Branch
    options: tuple[str, ...] = ()
    numbers: tuple[int, ...] = (1, 2)
    on_sound: bool = False

    def stages(self) -> list[Stage]:
        """Its stages in order."""
        return [s for s in STAGES if s.branch == self.branch and s.number in self.numbers]

    def options_of(self, stage: Stage, data: Path) -> list[str]:
        """What is changed in the YAML of a stage.

        Args:
            stage: one of its own.
            data: folder of the world.
        """
        if not self.on_sound:
            return list(self.options)
        sounds = (data / "train" / SOUND_SET).absolute()
        place = f"{{anno_dir: '{sounds}/{SOUND_SET}.json', videos_dir: '{sounds}/audio'}}"
        return [
            *self.options,
            *(f"datasets.{name}=null" for name in load_config(stage.config_path).datasets),
            f"datasets.{SOUND_SET}={{build_info: {place}}}",
            "model.prompt_path=null",  # those of stage 2 ask what is in a picture
        ]


def _ablated(branch: Branch, name: str, *options: str, **fields: Any) -> Recipe:
    return Recipe(name=f"{branch}-{name}", branch=branch, options=options, **fields)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A model to score.

    Attributes:
        name: of it.
        title: what the tables call it.
        recipes: of its branches; one that has none keeps random values.
        options: `section.key=value` each, for the model that answers alone.
    """

    name: str
    title: str
    recipes: tuple[Recipe, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Study:
    """A comparison of arms, each with every seed.

    Attributes:
        name: of it.
        arms: in the order of its tables.
        asked: the types of questions by what the model is given (see `evaluate.CONDITIONS`); no
            types: all of them.
        splits: whose questions are asked, once everything is chosen.
    """

    name: str
    arms: tuple[Arm, ...]
    asked: Mapping[Condition, tuple[str, ...]]
    splits: tuple[Split, ...] = ("test",)

    def recipes(self) -> list[Recipe]:
        """Every recipe of its arms, once."""
        return list(dict.fromkeys(recipe for arm in self.arms for recipe in arm.recipes))


VIDEO = Recipe(name="video", branch="video")
AUDIO = Recipe(name="audio", branch="audio")
"""The shipped YAMLs as they are; their position_init_std is that of NARROW."""
NARROW, WIDE = 0.2, 1.0
"""Initial scales of the positions: that of the tiny preset and that of the original."""
WIDE_AUDIO = Recipe(
    name="audio-wide", branch="audio", options=(f"model.position_init_std={WIDE:g}",)
)
SOUND_TYPES = ("hear", "hear_nothing", "sound_order", "silent")
"""Questions that sound alone answers."""

SEEDS = Study(
    name="seeds",
    arms=(
        Arm(name="trained", title="trained", recipes=(VIDEO, AUDIO)),
        Arm(name="untrained", title="random branches"),
    ),
    asked={name: () for name in get_args(Condition)},
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
            recipes=(recipe,),
            options=(f"model.audio_feature_norm={norm}",),
        )
        for std, recipe in ((WIDE, WIDE_AUDIO), (NARROW, AUDIO))
        for norm in ("none", "unit")
    ),
    asked={"sound": SOUND_TYPES},
)

ABLATIONS = Study(
    name="ablations",
    arms=(
        Arm(name="full", title="full", recipes=(VIDEO, AUDIO)),
        Arm(
            name="no-positions",
            title="without frame position embedding",
            recipes=(_ablated("video", "no-positions", "model.video_frame_positions=false"), AUDIO),
        ),
        Arm(
            name="mean",
            title="without video Q-Former (mean pooling)",
            recipes=(_ablated("video", "mean", "model.video_fusion=mean"), AUDIO),
        ),
        Arm(
            name="no-stage-1",
            title="without stage 1",
            recipes=(
                _ablated("video", "no-stage-1", numbers=(2,)),
                _ablated("audio", "no-stage-1", numbers=(2,)),
            ),
        ),
        Arm(
            name="on-sound",
            title="audio branch trained on sound instead of pictures",
            recipes=(VIDEO, _ablated("audio", "on-sound", on_sound=True)),
        ),
    ),
    asked={
        "all": ("kind", "colour", "motion", "count", "order", "see", "hear"),
        "sound": SOUND_TYPES,
    },
)

STUDIES = {study.name: study for study in (SEEDS, SCALES, ABLATIONS)}
"""The comparisons by their names."""
