"""`whisper-mla evaluate` as a user runs it, and the same on two processes."""

import csv
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import jiwer
import pytest
import torch
from transformers import GenerationConfig

from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.command_line.evaluate_command import result_files
from whisper_mla.evaluation import evaluate_model
from whisper_mla.evaluation.processes import Processes

from ..command_line import invoke

NAMES = ("clip00", "clip01", "clip02", "clip03", "clip07")
run, error_line = partial(invoke.run, "evaluate"), partial(invoke.error_line, "evaluate")
EXAMPLE = Path(__file__).parents[2] / "examples" / "evaluate.py"


def write_dataset(folder: Path, clips, names, **changed) -> Path:
    """An audio folder of bundled clips; `changed` replaces transcripts."""
    folder.mkdir()
    with open(folder / "metadata.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "text"])
        for name in names:
            shutil.copy(clips[name]["path"], folder / f"{name}.flac")
            writer.writerow([f"{name}.flac", changed.get(name, clips[name]["text"])])
    return folder


@pytest.fixture(scope="module")
def data(clips, tmp_path_factory) -> Path:
    """Five clips; one word of the first reference is not what is said."""
    return write_dataset(tmp_path_factory.mktemp("data") / "five", clips, NAMES, clip00="Three three, one four nine!")


@pytest.fixture(scope="module")
def low(digits, processor, tmp_path_factory) -> Path:
    """A converted checkpoint of a rank that makes errors."""
    folder = tmp_path_factory.mktemp("models") / "low"
    WhisperMLAForConditionalGeneration.from_whisper(digits, kv_rank=24, cross_kv_rank=24).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def evaluated(digits_folder, low, data, tmp_path_factory) -> Path:
    """The results of one process."""
    output = tmp_path_factory.mktemp("results") / "new"
    arguments = [digits_folder, low, "--dataset", data, "--language", "en", "--batch-size", 2]
    result = run(*arguments, "--output", output, "--resamples", 200)
    assert "Paired comparison" in result.stdout and "five" in result.stdout
    return output


def transcripts(path: Path) -> list[dict]:
    rows = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    return [{key: value for key, value in row.items() if key != "processing_seconds"} for row in rows]


def test_files(evaluated):
    suffixes = ["json", "low.jsonl", "md", "png", "whisper-digits.jsonl"]
    assert sorted(path.name for path in evaluated.iterdir()) == [f"evaluation.{suffix}" for suffix in suffixes]
    assert (evaluated / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    assert "| " in (evaluated / "evaluation.md").read_text()


def test_rates_are_those_of_the_transcripts(evaluated):
    report = json.loads((evaluated / "evaluation.json").read_text())
    assert report["normalizers"] == {"en": "basic"}
    for model, name in zip(report["models"], ("whisper-digits", "low"), strict=True):
        rows = transcripts(evaluated / f"evaluation.{name}.jsonl")
        assert [row["id"] for row in rows] == [f"{name}.flac" for name in NAMES]
        references = [row["reference"].replace(",", "").replace("!", "").lower() for row in rows]
        expected = jiwer.wer(references, [row["hypothesis"] for row in rows])
        score = model["scores"]["datasets"]["five"]
        assert score["wer"] == pytest.approx(expected) and score["wer"] > 0
        assert score["real_time_factor"] > 0 and model["peak_memory"]["bytes"] > 10_000_000
    stock, latent = report["models"]
    assert stock["scores"]["overall"]["wer"] == 1 / 42
    assert latent["scores"]["overall"]["wer"] > stock["scores"]["overall"]["wer"]
    difference = latent["scores"]["overall"]["wer"] - stock["scores"]["overall"]["wer"]
    assert report["comparisons"][0]["overall"]["difference"] == pytest.approx(difference)
    assert latent["cache_bytes"]["total"] < stock["cache_bytes"]["total"] / 10


@pytest.mark.processes
def test_two_processes_give_the_result_of_one(evaluated, digits_folder, low, data, tmp_path):
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", EXAMPLE]
    arguments = [digits_folder, low, "--dataset", data, "--language", "en", "--batch-size", 2, "--device", "cpu"]
    options = ["--output", tmp_path / "out", "--resamples", 200]
    command = list(map(str, [*program, *arguments, *options]))
    # As many threads as here: torchrun's own choice is one, and sums in another order round differently.
    variables = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Error rates") == 1  # one process speaks
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(p.name for p in evaluated.iterdir())
    for name in ("whisper-digits", "low"):
        file = f"evaluation.{name}.jsonl"
        assert transcripts(tmp_path / "out" / file) == transcripts(evaluated / file)
    one, two = (json.loads((path / "evaluation.json").read_text()) for path in (evaluated, tmp_path / "out"))
    assert (one["environment"]["processes"], two["environment"]["processes"]) == (1, 2)
    assert two["comparisons"] == one["comparisons"]
    for first, second in zip(one["models"], two["models"], strict=True):
        timed = ("processing_seconds", "real_time_factor")
        for score in (first["scores"]["overall"], second["scores"]["overall"]):
            assert all(score.pop(key) > 0 for key in timed)
        assert first["scores"]["overall"] == second["scores"]["overall"]


def test_a_second_run_transcribes_nothing_and_other_settings_are_refused(
    evaluated, digits_folder, low, data, tmp_path, monkeypatch
):
    output = tmp_path / "copy"
    shutil.copytree(evaluated, output)
    (output / "evaluation.json").unlink()
    monkeypatch.setattr(evaluate_model, "_transcribe", None)
    arguments = [digits_folder, low, "--dataset", data, "--language", "en", "--batch-size", 2, "--output", output]
    run(*arguments, "--resamples", 200, "--no-compare")
    report = json.loads((output / "evaluation.json").read_text())
    assert report["comparisons"] == [] and report["models"][0]["peak_memory"] is None
    first = json.loads((evaluated / "evaluation.json").read_text())
    assert report["models"][1]["scores"] == first["models"][1]["scores"]
    before = (output / "evaluation.low.jsonl").read_bytes()
    assert "other settings (num_beams)" in error_line(*arguments, "--num-beams", 2)
    assert (output / "evaluation.low.jsonl").read_bytes() == before


def test_overwrite_starts_afresh(evaluated, digits_folder, data, tmp_path):
    output = tmp_path / "copy"
    shutil.copytree(evaluated, output)
    run(digits_folder, "--dataset", data, "--output", output, "--limit", 1, "--overwrite", "--normalizer", "none")
    rows = transcripts(output / "evaluation.whisper-digits.jsonl")
    assert [(row["id"], row["language"]) for row in rows] == [("clip00.flac", None)]
    report = json.loads((output / "evaluation.json").read_text())
    assert report["models"][0]["scores"]["overall"]["wer"] == 3 / 5  # "Three", "three," and "nine!"
    assert report["normalizers"] == {"unknown": "none"}


def test_a_spelling_table_gives_english_its_normaliser(digits_folder, data, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(digits_folder, model)
    (model / "normalizer.json").write_text('{"colour": "color"}')
    run(model, "--dataset", data, "--output", tmp_path / "out", "--limit", 1, "--language", "English")
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert report["normalizers"] == {"en": "english"}
    assert report["models"][0]["scores"]["overall"]["words"] == 1  # 33149: digits in a row are one number


def test_unreadable_audio_is_named_and_the_rest_is_evaluated(digits_folder, clips, tmp_path):
    folder = write_dataset(tmp_path / "data", clips, ["clip00", "clip01", "clip02"])
    (folder / "clip01.flac").write_bytes(b"not audio")
    (folder / "clip02.flac").unlink()
    result = run(digits_folder, "--dataset", folder, "--output", tmp_path / "out", code=1)
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error:")]
    assert len(errors) == 2 and "clip01.flac: " in errors[0] and "clip02.flac: no such file" in errors[1]
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert [one["id"] for one in report["unreadable"]] == ["clip01.flac", "clip02.flac"]
    assert (
        report["models"][0]["scores"]["overall"]["utterances"],
        report["models"][0]["scores"]["overall"]["wer"],
    ) == (
        1,
        0,
    )
    assert "2 audio files could not be read" in (tmp_path / "out" / "evaluation.md").read_text()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--language", "xx"], "language='xx': the model does not have it"),
        (["--normalizer", "english"], "no spelling table"),
        (["--text-column", "words"], "no column words. It has: file_name, text"),
        (["--split", "test"], "neither a folder test/"),
        (["--dataset", "librispeech"], "neither a folder nor one of librispeech-clean"),
        (["--confidence", "95"], "--confidence 95.0"),
        (["--name", "a/b"], "--name 'a/b'"),
        (["--device", "tpu:9"], "device='tpu:9'"),
    ],
)
def test_bad_input_stops_before_the_first_step(digits_folder, data, tmp_path, monkeypatch, options, expected):
    monkeypatch.setattr(evaluate_model, "_transcribe", None)
    output = tmp_path / "out"
    assert expected in error_line(digits_folder, "--dataset", data, "--output", output, *options)
    assert not output.exists() or list(output.iterdir()) == []


def test_every_model_is_checked_before_the_first_is_run(digits_folder, data, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate_model, "_transcribe", None)
    arguments = ["--dataset", data, "--output", tmp_path / "out"]
    assert "no such folder" in error_line(digits_folder, tmp_path / "nothing", *arguments)
    english = tmp_path / "english"
    shutil.copytree(digits_folder, english)
    generation = GenerationConfig.from_pretrained(english)
    generation.is_multilingual = False
    generation.save_pretrained(english)
    line = error_line(digits_folder, english, *arguments, "--language", "de")
    assert f"{english}: language='de'" in line and "only transcribes English" in line
    (english / "generation_config.json").unlink()
    assert "no generation_config.json" in error_line(digits_folder, english, *arguments)
    for name in ("processor_config.json", "tokenizer_config.json", "tokenizer.json", "vocab.json"):
        (english / name).unlink()
    assert "no processor" in error_line(digits_folder, english, *arguments)
    assert not (tmp_path / "out").exists()


def test_transcripts_missing(digits_folder, clips, tmp_path):
    folder = write_dataset(tmp_path / "data", clips, ["clip00", "clip01"], clip01=" ")
    arguments = [digits_folder, "--dataset", folder, "--output", tmp_path / "out"]
    assert "1 of 2 utterances have no transcript (clip01.flac)" in error_line(*arguments)
    assert not (tmp_path / "out").exists()
    run(*arguments, "--skip-empty")
    assert len(transcripts(tmp_path / "out" / "evaluation.whisper-digits.jsonl")) == 1


def test_output_that_is_a_file(digits_folder, data, tmp_path):
    (tmp_path / "file").write_text("mine")
    line = error_line(digits_folder, "--dataset", data, "--output", tmp_path / "file")
    assert "exists and is not a folder" in line and (tmp_path / "file").read_text() == "mine"


def test_wrong_usage(digits_folder, data):
    run(digits_folder, code=2)
    run("--dataset", data, code=2)
    run(digits_folder, "--dataset", data, "--num-beams", 0, code=2)
    run(digits_folder, "--dataset", data, "--normalizer", "strict", code=2)


def test_models_of_one_name_keep_apart(digits_folder, tmp_path):
    other = tmp_path / digits_folder.name
    shutil.copytree(digits_folder, other)
    files = result_files([str(digits_folder), str(other)], tmp_path, "e", {}, Processes(), None)
    assert [file.path.name for file in files] == ["e.whisper-digits.jsonl", "e.whisper-digits-2.jsonl"]
    assert files[0].settings != files[1].settings


def test_a_checkpoint_that_changed_is_another_one(digits_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(digits_folder, folder)

    def identity() -> dict:
        return result_files([str(folder)], tmp_path, "e", {}, Processes(), None)[0].settings

    first = identity()
    assert identity() == first
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert identity() != first
