"""lmms-eval gets the answers that `video-llama evaluate` scores.

It is no dependency of the project, and brings a hundred packages: `requirements.txt` beside this
file lists what is enough for these tests. They say that they were skipped where it is not there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.reference import ROOT
from video_llama.apps.evaluate.examine import Examiner
from video_llama.apps.evaluate.questions import read_questions
from video_llama.synthetic.media import World
from video_llama.synthetic.write import write_world

lmms_eval = pytest.importorskip("lmms_eval", reason="lmms-eval is not installed (requirements.txt)")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "output/world"
    write_world(folder, num_clips=24, world=World(seed=0), splits=["test"], num_workers=1)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.chdir(tmp_path)
    return folder / "test"


def evaluate(**options: Any) -> tuple[Any, dict[str, Any]]:
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    from video_llama.apps.lmms.model import VideoLlamaChat

    model = VideoLlamaChat(device="cpu", batch_size=8, **options)
    tasks = TaskManager("WARNING", include_path=str(ROOT / "eval_tasks"), model_name="video_llama")
    found = simple_evaluate(
        model=model, tasks=["video_llama_world"], task_manager=tasks, log_samples=True
    )
    return model, found


def test_scores_are_those_of_evaluate_and_errors_those_of_items(world: Path) -> None:
    questions = json.loads((world / "questions.json").read_text("utf-8"))
    broken = world / questions[0]["path"]
    model, found = evaluate(details="details.json")
    samples = {s["doc_id"]: s["filtered_resps"][0] for s in found["samples"]["video_llama_world"]}
    examiner = Examiner(model.answerer.model)
    asked = read_questions(world / "questions.json", world)
    clips = {question.path: examiner.read(question.path) for question in asked}
    wanted = {a.question.item_id: a for a in examiner.ask(asked, clips, "all")}
    assert len(samples) == len(questions) > 20
    for place, item in enumerate(questions):
        assert samples[place] == wanted[item["id"]].answer
    share = sum(answer.is_right for answer in wanted.values()) / len(wanted)
    assert found["results"]["video_llama_world"]["exact_match,none"] == pytest.approx(share)
    details = json.loads(Path("details.json").read_text("utf-8"))
    assert (details["template"], details["frames"], details["errors"]) == ("llama_v2", 8, [])
    assert "llama_model:" in details["configuration"]

    broken.write_bytes(b"no clip")
    _, found = evaluate(details="details.json", num_frames=4)
    details = json.loads(Path("details.json").read_text("utf-8"))
    lost = [place for place, item in enumerate(questions) if world / item["path"] == broken]
    assert [error["item"] for error in details["errors"]] == lost
    assert details["frames"] == 4
    samples = {s["doc_id"]: s["filtered_resps"][0] for s in found["samples"]["video_llama_world"]}
    assert {place for place, answer in samples.items() if not answer} == set(lost)
