"""The script: audio folders, teacher's labels, killed runs, and one clear error for everything that is wrong."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForSpeechSeq2Seq

from tests.training.conftest import write_audio_folder
from whisper_mla.training import transcripts
from whisper_mla.training.labels import LabelMaker


@pytest.fixture
def command(tiny_checkpoint, tmp_path):
    """The command line of a short run; a change of None leaves an argument out."""
    folder = write_audio_folder(tmp_path / "clips", count=6)

    def make(**changes) -> list[str]:
        arguments = {
            "model": str(tiny_checkpoint),
            "conversion": {"kv_rank": 8},
            "train": [{"path": str(folder), "language": "en"}],
            "output_dir": str(tmp_path / "run"),
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "save_steps": 2,
            "logging_steps": 1,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            **changes,
        }
        return [
            part
            for name, value in arguments.items()
            if value is not None
            for part in (f"--{name}", value if isinstance(value, str) else json.dumps(value))
        ]

    return make


def weights_of(folder) -> dict[str, torch.Tensor]:
    return AutoModelForSpeechSeq2Seq.from_pretrained(folder).state_dict()


@pytest.mark.training
def test_a_run_begun_again_goes_on_from_its_checkpoint(finetune, command, tmp_path):
    finetune.main(command(output_dir=str(tmp_path / "whole")))
    finetune.main(command())
    for left in ("final", "checkpoint-4"):
        (tmp_path / "run" / left).rename(tmp_path / left)
    (tmp_path / "run" / "checkpoint-4").mkdir()  # killed while it was written
    finetune.main(command())
    state = json.loads((tmp_path / "run" / "checkpoint-4" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"]] == [1, 2, 3, 4]
    whole, again = weights_of(tmp_path / "whole" / "final"), weights_of(tmp_path / "run" / "final")
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.training
def test_another_recipe_does_not_go_on_where_one_was_begun(finetune, command, capsys):
    finetune.main(command(max_steps=1))
    with pytest.raises(SystemExit):
        finetune.main(command(max_steps=1, learning_rate=0.5))
    assert "holds a run with another recipe (different: learning_rate)" in capsys.readouterr().err


@pytest.mark.training
def test_a_run_that_never_began_is_not_held_against_the_next(finetune, command, tmp_path, capsys):
    with pytest.raises(SystemExit):
        finetune.main(command(model=str(tmp_path / "nothing")))
    capsys.readouterr()
    finetune.main(command(max_steps=1))
    assert "another recipe" not in capsys.readouterr().err


@pytest.mark.training
def test_labels_of_the_teacher(finetune, command, tmp_path, monkeypatch):
    seen, tokenised = [], LabelMaker.__call__
    # A teacher with random weights may hear nothing.
    monkeypatch.setattr(transcripts, "transcribe_examples", lambda _, __, examples, ___: ["heard"] * len(examples))
    monkeypatch.setattr(
        LabelMaker, "__call__", lambda self, text, *rest: seen.append(text) or tokenised(self, text, *rest)
    )
    folder = tmp_path / "clips"
    changes = {"label_source": "teacher", "loss": "distillation", "max_steps": 1}
    finetune.main(command(train=[{"path": str(folder), "language": "en", "text_column": None}], **changes))
    lines = (tmp_path / "run" / "teacher_transcripts" / "0" / "transcripts-0.jsonl").read_text().split("\n")
    assert len([line for line in lines if line]) == 6
    assert set(seen) == {"heard"}


def test_stock_control(finetune, command, tmp_path):
    finetune.main(command(conversion=None, max_steps=1))
    assert AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "run" / "final").config.model_type == "whisper"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "model: which checkpoint?"),
        ({"model": "{tmp}/nothing"}, "no such folder"),
        ({"train": None}, "train: no dataset"),
        ({"train": "here"}, "train='here': not JSON"),
        ({"train": [{"path": "$NO_SUCH_VARIABLE/x"}]}, "$NO_SUCH_VARIABLE/x: this environment variable is not set"),
        (
            {"train": [{"path": "{tmp}/clips", "language": "xx"}]},
            "example 0: language='xx': the tokenizer does not have",
        ),
        ({"train": [{"path": "{tmp}/clips"}]}, "language: not said of this dataset"),
        ({"train": [{"digit_takes": "{tmp}/nothing"}]}, "digit_takes: no {tmp}/nothing/metadata.csv"),
        ({"conversion": {"kv_rank": 99}}, "kv_rank=99: expected None, or an integer from 1 to d_model (32)"),
        ({"train_only": "everything"}, "expected one or several of 'decoder_self_attention'"),
        ({"train_only": "latent", "conversion": {}}, "nothing of this WhisperMLAForConditionalGeneration would train"),
        ({"adapter": {"r": 2}, "conversion": {}}, "adapter: this model has no latent of a rank below d_model"),
        ({"dtype": "bfloat16"}, "dtype='bfloat16': only with an adapter"),
        ({"dtype": "int8"}, "dtype='int8': expected 'float32' or 'bfloat16'"),
        ({"label_source": "me"}, "label_source='me': expected 'transcripts' or 'teacher'"),
        ({"normalizer": "french"}, "normalizer='french': expected one of"),
        ({"loss": "distillation", "conversion": None}, "teacher: none given"),
        ({"loss": "distillation", "teacher": "{tmp}/wide"}, "d_model is 64, the student's is 32"),
        ({"spec_augment": {"time": 1}}, "spec_augment: unknown field time"),
        ({"output_dir": "{tmp}/clips_parent"}, "is not empty and holds notes.txt"),
    ],
)
def test_bad_input(finetune, command, tmp_path, tiny_processor, capsys, changes, message):
    if changes.get("teacher"):
        from tests.training.conftest import tiny_whisper

        tiny_whisper(d_model=64).save_pretrained(tmp_path / "wide")
    (tmp_path / "clips_parent" / "final").mkdir(parents=True)
    (tmp_path / "clips_parent" / "final" / "notes.txt").write_text("mine")
    changes = json.loads(json.dumps(changes).replace("{tmp}", str(tmp_path)))
    with pytest.raises(SystemExit) as stopped:
        finetune.main(command(**changes))
    assert stopped.value.code == 1
    said = capsys.readouterr().err
    assert said.count("Error:") == 1
    assert message.replace("{tmp}", str(tmp_path)) in said
    assert not list(tmp_path.glob("*/checkpoint-*"))
    assert (tmp_path / "clips_parent" / "final" / "notes.txt").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not a recipe that can be read"),
        ("model: [", "not a recipe that can be read"),
        ("just text", "not a recipe; expected lines of 'name: value'"),
        ("modle: x", "unknown argument modle"),
    ],
)
def test_bad_recipe(finetune, tmp_path, capsys, content, message):
    path = tmp_path / "recipe.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit):
        finetune.main([str(path)])
    assert message in capsys.readouterr().err


def test_composed_digits_depend_on_seed_and_index_alone(finetune, tmp_path):
    from compose_digits import ComposedDigits

    folder = write_audio_folder(tmp_path / "takes", count=8, seconds=0.4)
    strings, again = ComposedDigits(folder, 30, seed=3), ComposedDigits(folder, 30, seed=3)
    for index in (29, 3, 3):
        assert strings[index]["text"] == again[index]["text"]
        assert np.array_equal(strings[index]["audio"]["array"], again[index]["audio"]["array"])
    texts = [strings[index]["text"] for index in range(30)]
    assert len(set(texts)) > 20
    assert {len(text.split()) for text in texts} <= set(range(1, 15))
    assert len({len(text.split()) for text in texts}) > 5
    assert max(len(strings[index]["audio"]["array"]) for index in range(30)) <= 160_000
    assert texts != [ComposedDigits(folder, 30, seed=4)[index]["text"] for index in range(30)]
    with pytest.raises(IndexError):
        strings[30]


def test_examples_of_composed_digits_as_an_audio_folder(finetune, tmp_path):
    from compose_digits import main

    from whisper_mla.training.speech_data import load_speech

    main(write_audio_folder(tmp_path / "takes"), tmp_path / "strings", count=3)
    assert len(load_speech({"path": str(tmp_path / "strings"), "language": "en"})) == 3
