"""`whisper-mla transcribe-many` as a user runs it, on one process and on two of which one is killed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from whisper_mla.command_line import transcribe_many_command as module
from whisper_mla.command_line.app import app
from whisper_mla.transcription.transcriber import Transcriber

ROOT = Path(__file__).parents[2]
NAMES = ("clip00", "clip01", "clip02", "clip03", "clip04", "clip05")


@pytest.fixture(scope="module")
def recordings(clips, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "recordings"
    folder.mkdir()
    for name in NAMES:
        shutil.copy(clips[name]["path"], folder / f"{name}.flac")
    (folder / "broken.wav").write_bytes(b"RIFF no sound")
    return folder


def run(*arguments):
    return CliRunner().invoke(app, ["transcribe-many", *map(str, arguments)])


def rows(output) -> list[dict]:
    return [json.loads(line) for line in (output / "transcripts.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def transcribed(digits_folder, recordings, tmp_path_factory):
    """The output of one process, and what it said."""
    output = tmp_path_factory.mktemp("one") / "out"
    result = run(digits_folder, recordings, "--output", output, "--batch-size", 2, "--device", "cpu")
    return output, result


def test_one_file_of_results_in_the_order_of_the_source(transcribed, clips):
    output, result = transcribed
    assert result.exit_code == 1  # a file failed
    assert sorted(path.name for path in output.iterdir()) == ["settings.json", "summary.json", "transcripts.jsonl"]
    found = rows(output)
    assert [row["audio"] for row in found] == ["broken.wav", *(f"{name}.flac" for name in NAMES)]
    texts = {name: row["text"] for name, row in zip(NAMES, found[1:], strict=True)}
    assert sum(texts[name] == clips[name]["text"].replace(",", "") for name in NAMES) >= len(NAMES) - 1
    assert found[1]["seconds"] == pytest.approx(len(clips["clip00"]["samples"]) / 16_000, abs=1e-3)


def test_the_summary_names_every_failure(transcribed):
    output, result = transcribed
    summary = json.loads((output / "summary.json").read_text())
    assert [failure["audio"] for failure in summary["failures"]] == ["broken.wav"]
    assert (summary["files"], summary["new_files"], summary["processes"]) == (7, 7, 1)
    assert "broken.wav" in result.stderr and "1 of 7 files have no transcript" in result.stderr
    assert "audio-hours/hour" in result.stdout and summary["audio_hours_per_hour"] > 0


def test_a_second_run_does_nothing_and_failed_files_can_be_tried_again(
    transcribed, digits_folder, recordings, tmp_path, monkeypatch
):
    output = tmp_path / "out"
    shutil.copytree(transcribed[0], output)
    before = rows(output)
    monkeypatch.setattr(Transcriber, "__call__", None)
    arguments = [digits_folder, recordings, "--output", output, "--device", "cpu"]
    again = run(*arguments)
    assert again.exit_code == 1 and "7 recordings have a result already" in again.stderr
    assert rows(output) == before
    retried = run(*arguments, "--retry-failed")
    assert "6 recordings have a result already" in retried.stderr and rows(output) == before
    other = run(*arguments, "--num-beams", 2)
    assert other.exit_code == 1 and "other settings (num_beams)" in other.stderr
    assert rows(output) == before


def test_missing_files_are_all_named_before_the_model_is_loaded(digits_folder, recordings, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "load_for_transcription", None)
    (tmp_path / "m.txt").write_text("\n".join([str(recordings / "clip00.flac"), "gone-1.wav", "gone-2.wav"]))
    result = run(digits_folder, tmp_path / "m.txt", "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr.count("not there: gone-") == 2 and "2 of 3 files are not there" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["nowhere"], "no such folder or manifest"),
        (["RECORDINGS", "--language", "xx"], "xx"),
        (["RECORDINGS", "--temperatures", "warm"], "temperatures"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_loaded(
    digits_folder, recordings, tmp_path, monkeypatch, arguments, complaint
):
    monkeypatch.setattr(module, "load_for_transcription", None)
    given = [str(recordings) if argument == "RECORDINGS" else argument for argument in arguments]
    result = run(digits_folder, *given, "--output", tmp_path / "out")
    assert result.exit_code != 0 and complaint in result.stderr
    assert not (tmp_path / "out").exists()


def launch(module: str, *arguments) -> subprocess.CompletedProcess:
    # --multi_gpu is how Accelerate starts several processes of one machine, GPUs or not.
    options = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]
    options += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    program = [sys.executable, "-m", "accelerate.commands.launch", *options, "-m", module, "transcribe-many"]
    # As many threads as here: the launcher's own choice is one, and sums in another order round differently.
    variables = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(ROOT)}
    command = [*program, *map(str, arguments)]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.mark.processes
def test_two_processes_one_of_them_killed_and_started_again(transcribed, digits_folder, recordings, tmp_path):
    output = tmp_path / "out"
    arguments = [digits_folder, recordings, "--output", output, "--batch-size", 1, "--device", "cpu"]
    killed = launch("tests.bulk.killed_worker", *arguments)
    assert killed.returncode != 0 and "SIGKILL" in killed.stderr
    torn = (output / "transcripts.part1.jsonl").read_bytes()
    assert torn.count(b"\n") == 1 and not torn.endswith(b"\n")

    again = launch("whisper_mla", *arguments)
    assert "recordings have a result already" in again.stderr, again.stderr
    assert again.stdout.count("files with a result") == 1  # one process speaks
    assert sorted(path.name for path in output.iterdir()) == ["settings.json", "summary.json", "transcripts.jsonl"]
    assert [(row["audio"], row.get("text")) for row in rows(output)] == [
        (row["audio"], row.get("text")) for row in rows(transcribed[0])
    ]
    summary = json.loads((output / "summary.json").read_text())
    assert summary["processes"] == 2 and 0 < summary["new_files"] < 7 == summary["files"]
