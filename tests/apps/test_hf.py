"""An exported folder is the same model to transformers as to a chat."""

from __future__ import annotations

import filecmp
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForMultimodalLM,
    AutoProcessor,
    BitsAndBytesConfig,
    pipeline,
)

from tests.golden_model import build_golden, golden_settings
from tests.hostile import hostile_text
from tests.reference import ROOT
from video_llama.apps.hf import VideoLlamaModel, VideoLlamaProcessor
from video_llama.apps.hf.export import export_hf
from video_llama.chat.engine import Chat
from video_llama.common.io import default_config_path, package_file
from video_llama.config.build import build_model
from video_llama.config.load import load_config
from video_llama.config.schema import Config
from video_llama.models.video_llama import VideoLlama
from video_llama.synthetic.media import World
from video_llama.synthetic.write import write_world
from video_llama.text.templates import TEMPLATES, Turn
from video_llama.text.tokenizer import load_tokenizer
from video_llama.types import ConfigError, RequestError

EXAMPLES = ROOT / "examples"
ASKED = [
    (("bells_and_a_drum.mp4",), "What do you hear?"),
    (("bells_and_a_drum.mp4",), "What do you see?"),
    (("silent_siren.mp4",), "Is it silent?"),
    (("two_bells.jpg",), "How many are there?"),
    (("whistle.wav",), "What do you hear?"),
    (("bird.mp4", "two_bells.jpg"), "Which colour is it?"),
]
KINDS = {".mp4": "video", ".jpg": "image", ".wav": "audio"}


@pytest.fixture(scope="module")
def model() -> VideoLlama:
    return build_model(load_config(default_config_path(), ["run.device=cpu"]))


@pytest.fixture(scope="module")
def folder(model: VideoLlama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hf") / "exported"
    export_hf(model, path)
    return path


@pytest.fixture(scope="module")
def reloaded(folder: Path) -> VideoLlamaModel:
    found: VideoLlamaModel = AutoModelForMultimodalLM.from_pretrained(folder)
    return found


@pytest.fixture(scope="module")
def processor(folder: Path) -> VideoLlamaProcessor:
    found: VideoLlamaProcessor = AutoProcessor.from_pretrained(folder)
    return found


def message(files: tuple[str, ...], question: str) -> list[dict[str, Any]]:
    parts = [{"type": KINDS[Path(f).suffix], "path": str(EXAMPLES / f)} for f in files]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def chat_answer(chat: Chat, files: tuple[str, ...], question: str) -> str:
    with chat.start() as session:
        for file in files:
            session.add(EXAMPLES / file)
        return "".join(session.ask(question, temperature=0.0, max_new_tokens=24))


@pytest.fixture(scope="module")
def chat(model: VideoLlama) -> Chat:
    return Chat(model, in_worker=False)


def test_every_weight_and_buffer_comes_back(model: VideoLlama, reloaded: VideoLlamaModel) -> None:
    ours = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    theirs = dict(reloaded.video_llama.named_parameters()) | dict(
        reloaded.video_llama.named_buffers()
    )
    assert ours.keys() == theirs.keys()
    assert [name for name, value in ours.items() if not torch.equal(value, theirs[name])] == []
    assert not reloaded.training


@pytest.mark.parametrize(("files", "question"), ASKED, ids=[f"{f[0]}-{q}" for f, q in ASKED])
def test_greedy_answers_are_those_of_the_chat(
    files: tuple[str, ...],
    question: str,
    chat: Chat,
    reloaded: VideoLlamaModel,
    processor: VideoLlamaProcessor,
) -> None:
    inputs = processor.apply_chat_template(message(files, question))
    ids = reloaded.generate(**inputs, max_new_tokens=24, do_sample=False)
    (text,) = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :])
    assert text.strip() == chat_answer(chat, files, question)


def test_a_pipeline_answers_as_the_chat(
    chat: Chat, reloaded: VideoLlamaModel, processor: VideoLlamaProcessor
) -> None:
    pipe = pipeline("any-to-any", model=reloaded, processor=processor)
    for files, question in ASKED[:2]:
        found = pipe(
            text=message(files, question),
            max_new_tokens=24,
            return_full_text=False,
            generate_kwargs={"do_sample": False},
        )
        assert found[0]["generated_text"].strip() == chat_answer(chat, files, question)


def test_later_turns_and_silence_are_those_of_the_chat(
    chat: Chat, reloaded: VideoLlamaModel, processor: VideoLlamaProcessor
) -> None:
    with chat.start(video=EXAMPLES / "bird.mp4", use_audio=False) as session:
        first = "".join(session.ask("What do you see?", temperature=0.0, max_new_tokens=24))
        second = "".join(session.ask("What colour is it?", temperature=0.0, max_new_tokens=24))
    messages = [
        *message(("bird.mp4",), "What do you see?"),
        {"role": "assistant", "content": first},
        {"role": "user", "content": "What colour is it?"},
    ]
    inputs = processor.apply_chat_template(messages, use_audio=False)
    assert "audio_values" not in inputs
    ids = reloaded.generate(**inputs, max_new_tokens=24, do_sample=False)
    assert processor.decode(ids[0, inputs["input_ids"].shape[1] :]).strip() == second


def test_a_stop_mark_of_several_tokens_ends_an_answer(tmp_path: Path) -> None:
    model = build_golden(template="vicuna")
    settings = golden_settings(template="vicuna")
    model.configuration = Config(model=settings)
    export_hf(model, tmp_path / "vicuna")
    found: VideoLlamaModel = AutoModelForMultimodalLM.from_pretrained(tmp_path / "vicuna")
    processor = AutoProcessor.from_pretrained(tmp_path / "vicuna")
    stop = found.config.manifest["stop_ids"][-1]
    assert len(stop) > 1
    inputs = processor.apply_chat_template([{"role": "user", "content": "Hello"}])
    prompt = inputs["input_ids"]
    wanted = iter([5, *stop, 6, 7])

    def force(_: Any, scores: torch.Tensor) -> torch.Tensor:
        scores = torch.full_like(scores, -1e9)
        scores[:, next(wanted)] = 0
        return scores

    ids = found.generate(**inputs, max_new_tokens=9, do_sample=False, logits_processor=[force])
    assert ids[0, prompt.shape[1] :].tolist() == [5, *stop]
    assert not processor.decode(ids[0, prompt.shape[1] :]).endswith("###")


def test_no_answer_begins_with_a_stop_mark(
    reloaded: VideoLlamaModel, processor: VideoLlamaProcessor
) -> None:
    inputs = processor.apply_chat_template([{"role": "user", "content": "Hello"}])
    eos = reloaded.generation_config.eos_token_id

    def end(_: Any, scores: torch.Tensor) -> torch.Tensor:
        scores[:, eos] += 1e4
        return scores

    ids = reloaded.generate(**inputs, max_new_tokens=9, do_sample=False, logits_processor=[end])
    first, second = ids[0, inputs["input_ids"].shape[1] :].tolist()
    assert (first != eos, second) == (True, eos)


@pytest.mark.parametrize(
    ("llm", "encoders"), [("bf16", "bf16"), ("fp32", "bf16"), ("bf16", "fp32")]
)
def test_each_part_keeps_its_number_type(llm: str, encoders: str, tmp_path: Path) -> None:
    types = [f"model.precision={llm}", f"model.vit_precision={encoders}"]
    types.append(f"model.imagebind_precision={encoders}")
    model = build_model(load_config(default_config_path(), ["run.device=cpu", *types]))
    export_hf(model, tmp_path / "a")
    found: VideoLlamaModel = AutoModelForMultimodalLM.from_pretrained(tmp_path / "a")
    theirs = found.video_llama.state_dict()
    for name, value in model.state_dict().items():
        assert value.dtype == theirs[name].dtype, name
        assert torch.equal(value, theirs[name]), name
    processor = AutoProcessor.from_pretrained(tmp_path / "a")
    inputs = processor.apply_chat_template(message(*ASKED[0]))
    ids = found.generate(**inputs, max_new_tokens=9, do_sample=False)
    text = processor.decode(ids[0, inputs["input_ids"].shape[1] :]).strip()
    assert text == chat_answer(Chat(model, in_worker=False), *ASKED[0])
    found.save_pretrained(tmp_path / "b")
    assert filecmp.cmp(
        tmp_path / "a/model.safetensors", tmp_path / "b/model.safetensors", shallow=False
    )


def test_layers_on_disk_give_the_same_answers(
    folder: Path, reloaded: VideoLlamaModel, processor: VideoLlamaProcessor, tmp_path: Path
) -> None:
    llama = "video_llama.language_model"
    parts = [name for name, _ in reloaded.video_llama.named_children() if name != "language_model"]
    places = {f"video_llama.{name}": "cpu" for name in parts}
    rest = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
    places |= {f"{llama}.{name}": "cpu" for name in rest}
    num_layers = reloaded.config.text_config.num_hidden_layers
    places |= {f"{llama}.model.layers.{i}": ("cpu", "disk")[i % 2] for i in range(num_layers)}
    found: VideoLlamaModel = AutoModelForMultimodalLM.from_pretrained(
        folder, device_map=places, offload_folder=tmp_path
    )
    inputs = processor.apply_chat_template(message(*ASKED[0]))
    greedy = {"max_new_tokens": 9, "do_sample": False}
    assert torch.equal(found.generate(**inputs, **greedy), reloaded.generate(**inputs, **greedy))


def test_files_and_a_text_make_one_question(processor: VideoLlamaProcessor) -> None:
    (file,), question = ASKED[0]
    made = processor(text=question, videos=str(EXAMPLES / file))
    wanted = processor.apply_chat_template(message(*ASKED[0]))
    assert torch.equal(made["input_ids"], wanted["input_ids"])
    assert torch.equal(made["pixel_values"], wanted["pixel_values"])
    with pytest.raises(RequestError, match="one question expected"):
        processor(text=[question, question])


def test_saving_again_gives_the_same_bytes(
    folder: Path, reloaded: VideoLlamaModel, processor: VideoLlamaProcessor, tmp_path: Path
) -> None:
    reloaded.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    own = {"README.md", "video_llama.yaml"}
    names = {path.name for path in folder.iterdir()} - own
    assert {path.name for path in tmp_path.iterdir()} == names
    _, different, errors = filecmp.cmpfiles(folder, tmp_path, names, shallow=False)
    assert (different, errors) == ([], [])


def test_ids_of_hostile_texts_are_those_of_the_chat(processor: VideoLlamaProcessor) -> None:
    tokenizer = load_tokenizer(package_file("presets/tiny/llama"))
    draw = random.Random(0)
    alphabet = "ab  \n\t<>#/[]{}.'é中😀\u0000\u2581\u200b</s><s><unk><ImageHere>###[INST]"
    for _ in range(1000):
        text = "".join(draw.choice(alphabet) for _ in range(draw.randrange(30)))
        assert processor.tokenizer(text).input_ids == tokenizer(text).input_ids


def test_media_keep_their_number_type(processor: VideoLlamaProcessor) -> None:
    inputs = processor.apply_chat_template(message(*ASKED[0]))
    moved = inputs.to(dtype=torch.bfloat16)
    assert moved["pixel_values"].dtype == torch.float32
    assert moved["input_ids"].dtype == torch.int64


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([{"role": "user", "content": [{"type": "smell", "path": "a"}]}], "type 'smell'"),
        ([{"role": "user", "content": [{"type": "video", "path": 3}]}], "type 'video'"),
        ([{"role": "tool", "content": "x"}], "role 'tool'"),
        ([{"role": "assistant", "content": "x"}], "role 'assistant'"),
        ([], "nothing to answer"),
        ([[{"role": "user", "content": "a"}]], "one conversation of messages expected"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "nothing to"),
    ],
)
def test_messages_that_make_no_sense_are_refused(
    messages: list[dict[str, Any]], text: str, processor: VideoLlamaProcessor
) -> None:
    with pytest.raises(RequestError, match=text):
        processor.apply_chat_template(messages)


def test_media_without_their_prompt_are_refused(
    reloaded: VideoLlamaModel, processor: VideoLlamaProcessor
) -> None:
    inputs = processor.apply_chat_template(message(*ASKED[0]))
    with pytest.raises(ValueError, match=r"the prompts have 0 places for media"):
        reloaded.generate(**{**inputs, "input_ids": torch.tensor([[1, 2, 3]])})
    with pytest.raises(ValueError, match=r"whose encoders give 0 tokens"):
        reloaded.generate(inputs["input_ids"])


def test_a_prompt_beyond_the_context_is_refused(
    reloaded: VideoLlamaModel, processor: VideoLlamaProcessor
) -> None:
    inputs = processor.apply_chat_template([{"role": "user", "content": "drum " * 3000}])
    with pytest.raises(ValueError, match="but the model's context holds 2048"):
        reloaded.generate(**inputs)


def test_labels_give_a_loss_with_gradients(
    reloaded: VideoLlamaModel, processor: VideoLlamaProcessor
) -> None:
    inputs = processor.apply_chat_template(message(*ASKED[0]))
    labels = inputs["input_ids"].clamp(max=100)
    embeds = reloaded.embed(inputs["input_ids"], inputs).detach().requires_grad_()
    loss = reloaded(inputs_embeds=embeds, labels=labels).loss
    loss.backward()
    assert embeds.grad is not None
    assert embeds.grad.abs().sum() > 0


def test_only_the_language_model_is_quantised(folder: Path, processor: VideoLlamaProcessor) -> None:
    found: VideoLlamaModel = AutoModelForMultimodalLM.from_pretrained(
        folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map={"": "cpu"}
    )
    int8 = [n for n, m in found.named_modules() if type(m).__name__ == "Linear8bitLt"]
    assert int8
    assert all(name.startswith("video_llama.language_model.model.layers.") for name in int8)
    inputs = processor.apply_chat_template(message(*ASKED[0]))
    ids = found.generate(**inputs, max_new_tokens=9, do_sample=False)
    assert processor.decode(ids[0, inputs["input_ids"].shape[1] :]).strip() == "a drum"


def test_what_exists_is_not_replaced(model: VideoLlama, folder: Path) -> None:
    with pytest.raises(ConfigError, match="exists; give another folder"):
        export_hf(model, folder)


def test_nothing_is_left_of_a_folder_that_was_not_finished(
    model: VideoLlama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(VideoLlamaProcessor, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        export_hf(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_folder_names_no_path_of_this_machine(folder: Path) -> None:
    for name in ("config.json", "video_llama.yaml", "README.md"):
        assert str(ROOT) not in (folder / name).read_text("utf-8")


def test_the_folder_is_one_for_the_commands_too(chat: Chat, folder: Path) -> None:
    other = Chat(build_model(load_config(weights=folder)), in_worker=False)
    for files, question in ASKED[:3]:
        assert chat_answer(other, files, question) == chat_answer(chat, files, question)


@pytest.mark.slow
def test_a_hundred_unseen_clips_get_the_answers_of_the_chat(
    chat: Chat, reloaded: VideoLlamaModel, processor: VideoLlamaProcessor, tmp_path: Path
) -> None:
    write_world(tmp_path, num_clips=200, world=World(seed=0), splits=["test"], num_workers=1)
    asked = json.loads((tmp_path / "test/questions.json").read_text("utf-8"))
    pipe = pipeline("any-to-any", model=reloaded, processor=processor)
    answers = []
    for item in random.Random(0).sample(asked, 100):
        path = tmp_path / "test" / item["path"]
        with chat.start(video=path) as session:
            assert session.media[0].sound_used
            wanted = "".join(session.ask(item["question"], temperature=0.0, max_new_tokens=24))
        messages = message((str(path),), item["question"])
        inputs = processor.apply_chat_template(messages)
        ids = reloaded.generate(**inputs, max_new_tokens=24, do_sample=False)
        found = pipe(
            text=messages,
            max_new_tokens=24,
            return_full_text=False,
            generate_kwargs={"do_sample": False},
        )
        answers.append(wanted)
        assert processor.decode(ids[0, inputs["input_ids"].shape[1] :]).strip() == wanted
        assert found[0]["generated_text"].strip() == wanted
    assert len(set(answers)) > 10


@pytest.mark.slow
def test_prompts_of_ten_thousand_hostile_texts_are_those_of_the_chat(
    model: VideoLlama, processor: VideoLlamaProcessor
) -> None:
    template = TEMPLATES.get("llama_v2")
    for seed in range(10_000):
        text = hostile_text(seed)
        prompt = processor.apply_chat_template([{"role": "user", "content": text}])
        wanted = template.chat_ids([Turn(text)], model.tokenizer)
        assert prompt["input_ids"][0].tolist() == wanted, seed


@pytest.mark.slow
def test_nothing_has_to_be_imported_before(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    code = f"""
import sys
import video_llama.common.compat  # beside a CPU build of torch transformers' own imports need it
from transformers import AutoModelForMultimodalLM, AutoProcessor
assert "video_llama.apps" not in sys.modules
model = AutoModelForMultimodalLM.from_pretrained({str(folder)!r}, trust_remote_code=True)
processor = AutoProcessor.from_pretrained({str(folder)!r}, trust_remote_code=True)
inputs = processor.apply_chat_template({json.dumps(message(*ASKED[0]))})
ids = model.generate(**inputs, max_new_tokens=9, do_sample=False)
print(processor.decode(ids[0, inputs["input_ids"].shape[1]:]).strip())
# Whoever loads it by its stub and saves it must not save a copy of the code.
model.save_pretrained({str(again)!r})
processor.save_pretrained({str(again)!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "a drum"
    names = {path.name for path in folder.iterdir()} - {"README.md", "video_llama.yaml"}
    assert {path.name for path in again.iterdir()} == names
    assert filecmp.cmpfiles(folder, again, names, shallow=False)[1:] == ([], [])
