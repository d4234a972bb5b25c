"""Every recipe runs from its first line to the checkpoint, on a tiny model and a tiny data set of the same shape."""

import json
import re

import pytest
import torch
import yaml
from datasets import Dataset
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

from tests.conftest import ASSETS
from tests.training.conftest import EXAMPLES, speech, write_audio_folder
from tests.training.test_speech_data import encoded
from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.training.recipe import parse_recipe

RECIPES = sorted((EXAMPLES / "recipes").glob("*.yaml"))
UNLABELLED = EXAMPLES / "recipes" / "unlabelled.yaml"
TEXT_COLUMN = {"openslr/librispeech_asr": "text", "fixie-ai/common_voice_17_0": "sentence"}


def same_shape(sources: list[dict], folder) -> list[dict]:
    """The sources of a recipe with their paths replaced by tiny data sets of the same configurations and splits."""
    replaced, files = [], {}
    for source in sources:
        name = re.sub(r"\W", "_", source["path"])
        files.setdefault(name, {}).setdefault(source["name"], set()).add(source["split"])
        replaced.append({**source, "path": str(folder / name)})
        target = folder / name / source["name"] / f"{source['split']}.parquet"
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"path": f"{i}.flac", "bytes": encoded(row["audio"]["array"])} for i, row in enumerate(speech(4, 0.3))]
        texts = {TEXT_COLUMN[source["path"]]: ["ONE", "TWO", "THREE", "FOUR"]}
        Dataset.from_dict({"audio": rows, **texts, "client_id": ["a"] * 4}).to_parquet(target)
    for name, configurations in files.items():
        card = {
            "configs": [
                {
                    "config_name": configuration,
                    "data_files": [
                        {"split": split, "path": f"{configuration}/{split}.parquet"} for split in sorted(splits)
                    ],
                }
                for configuration, splits in configurations.items()
            ]
        }
        (folder / name / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n")
    return replaced


def small(recipe: dict, folder) -> list[str]:
    """What has to change in a recipe for a tiny model and two steps."""
    changes = {
        "conversion": {**recipe["conversion"], "kv_rank": 20},  # above the 16 preserved key dimensions of the paper's
        "max_steps": 2,
        "warmup_steps": 1,
        "lr_scheduler_kwargs": {**recipe["lr_scheduler_kwargs"], "num_decay_steps": 1},
        "eval_steps": 1,
        "save_steps": 1,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "per_device_eval_batch_size": 4,
        "dataloader_num_workers": 0,
        "generation_max_length": 24,
        "use_cpu": True,
        "disable_tqdm": True,
        "output_dir": str(folder / "run"),
    }
    if "spec_augment" in recipe:
        changes["spec_augment"] = {**recipe["spec_augment"], "mask_feature_length": 2}
    if "calibration" in recipe["conversion"]:
        changes["conversion"] |= {"calibration": 4, "force": True}  # too little to be any good
    if "train" in recipe and "digit_takes" not in recipe["train"][0]:
        # Of several languages two will do.
        train, evaluation = recipe["train"][:2], recipe["evaluation"][:2]
        sources = same_shape([*train, *evaluation], folder / "data")
        changes["train"], changes["evaluation"] = sources[: len(train)], sources[len(train) :]
        if "probabilities" in recipe:
            changes["probabilities"] = [0.5, 0.5]
    if recipe["normalizer"] == "english":
        changes["normalizer"] = "basic"  # the tiny tokenizer has no spelling table
    return [
        part
        for name, value in changes.items()
        for part in (f"--{name}", value if isinstance(value, str) else json.dumps(value))
    ]


def test_all_recipes_are_there():
    names = {path.stem for path in RECIPES}
    assert names == {
        "digits",
        "dora",
        "librispeech-small",
        "librispeech-small-paper",
        "lora",
        "multilingual",
        "unlabelled",
    }


@pytest.mark.training
@pytest.mark.parametrize("path", [path for path in RECIPES if path != UNLABELLED], ids=lambda path: path.stem)
def test_recipe_runs(path, finetune, tiny_checkpoint, tmp_path, monkeypatch, capsys):
    recipe = yaml.safe_load(path.read_text())
    write_audio_folder(tmp_path / "digits" / "train_takes", seconds=0.3)
    write_audio_folder(tmp_path / "digits" / "dev", seconds=0.3)
    monkeypatch.setenv("DIGITS_DATA", str(tmp_path / "digits"))

    finetune.main([str(path), "--model", str(tiny_checkpoint), *small(recipe, tmp_path)])

    run = tmp_path / "run"
    results = json.loads((run / "results.json").read_text())
    assert results["step"] == 2
    assert results["eval_wer"] > 0
    assert results["best_checkpoint"].startswith(str(run / "checkpoint-"))
    assert list(run.rglob("events.out.tfevents.*"))
    model = AutoModelForSpeechSeq2Seq.from_pretrained(run / "final", dtype=torch.float32)
    assert type(model) is WhisperMLAForConditionalGeneration
    assert model.config.kv_rank == 20
    healing = json.loads((run / "final" / "conversion.json").read_text())["healing"]
    assert (healing["steps"], healing["batch_size"], healing["loss"]) == (2, 2, recipe["loss"])
    assert any("self_attn.kv_down_proj" in name for name in healing["trained_tensors"])
    assert AutoProcessor.from_pretrained(run / "final").tokenizer.eos_token_id == 256
    state = json.loads((run / "checkpoint-2" / "trainer_state.json").read_text())
    assert {"loss", "eval_wer"} <= {name for entry in state["log_history"] for name in entry}
    if len(recipe["evaluation"]) > 1:
        assert {"eval_wer_de", "eval_wer_fr"} <= set(results)


@pytest.mark.training
def test_a_recipe_that_reads_no_transcripts(finetune, digits_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("AUDIO", str(ASSETS / "clips"))
    conversion = {"latent_dtype": "int4", "method": "joint_svd"}  # mixed bits take a minute
    phases = ["--warmup_steps", "1", "--lr_scheduler_kwargs", '{"num_decay_steps": 1, "decay_type": "1-sqrt"}']
    steps = ["--max_steps", "2", "--save_steps", "2", "--per_device_train_batch_size", "2", *phases]
    where = ["--model", str(digits_folder), "--output_dir", str(tmp_path / "run"), "--use_cpu", "true"]

    finetune.main([str(UNLABELLED), *where, *steps, "--conversion", json.dumps(conversion)])

    model = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "run" / "final", dtype=torch.float32)
    assert model.config.latent_dtype == "int4"
    healing = json.loads((tmp_path / "run" / "final" / "conversion.json").read_text())["healing"]
    assert healing["steps"] == 2 and any("encoder_attn" in name for name in healing["trained_tensors"])


def test_papers_recipe_is_the_papers():
    model, _, args = parse_recipe([str(EXAMPLES / "recipes" / "librispeech-small-paper.yaml"), "--use_cpu", "true"])
    assert (model.conversion["kv_rank"], model.conversion["preserved_key_dims"]) == (144, 4)
    assert (args.max_steps, args.learning_rate, args.warmup_steps) == (18_000, 1e-4, 900)
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 32
    assert args.lr_scheduler_kwargs == {"num_decay_steps": 1800, "decay_type": "1-sqrt"}
    assert (args.adam_beta1, args.adam_beta2, args.weight_decay, args.max_grad_norm) == (0.9, 0.95, 0.01, 1.0)
