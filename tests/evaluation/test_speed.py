"""Time per token: in turns, in fresh processes, and what does not fit is a result."""

import json

import pytest
from typer.testing import CliRunner

from tests.conftest import random_whisper
from whisper_mla.command_line import benchmark_speed_command
from whisper_mla.command_line.app import app
from whisper_mla.configuration import whisper_config
from whisper_mla.evaluation import fresh_process, speed, speed_process
from whisper_mla.evaluation.speed import SpeedSetting, candidates, measure_speed, speed_ups

SETTINGS = [SpeedSetting(1, 4, 1), SpeedSetting(2, 4, 3)]


def run(*arguments):
    return CliRunner().invoke(app, ["benchmark", "speed", *map(str, arguments)])


def answers(*milliseconds):
    return [{"milliseconds": one} for one in milliseconds]


@pytest.fixture
def jobs(monkeypatch):
    """Jobs that processes were given; each answers 10 ms for stock and 5 ms for others at every setting."""
    given = []

    def fake(module, job, seconds):
        given.append(job)
        return answers(*[10.0 if job["name"] == "stock" else 5.0] * len(job["settings"])), None

    monkeypatch.setattr(speed, "run_fresh", fake)
    return given


def test_rounds_alternate_and_ratios_are_paired(jobs):
    models = candidates(whisper_config("tiny"), 5, compiled=True)
    table = measure_speed(models, SETTINGS, "float32", rounds=2)
    names = ["stock", "exact", "int8 latents", "int4 latents", "exact, compiled"]
    assert [job["name"] for job in jobs] == names + names[::-1]
    assert jobs[4]["compiled"] and not jobs[1]["compiled"]
    assert table["exact"][SETTINGS[1]].milliseconds == [5.0, 5.0]
    assert speed_ups(table)["int4 latents"] == dict.fromkeys(SETTINGS, 2.0)
    assert speed_ups(table)["stock"] == dict.fromkeys(SETTINGS, 1.0)


def test_want_of_memory_and_time_are_results_and_the_rest_goes_on(monkeypatch):
    """A process that was killed at its first setting; one that tells of it; and neither is asked again."""
    replies = iter(
        [
            ([], "out of memory"),
            (answers(7.0), None),
            (answers(None, 3.0), None),
            (answers(2.0), None),
            (answers(9.0), None),
        ]
    )
    asked = []

    def fake(module, job, seconds):
        asked.append((job["name"], [tuple(one) for one in job["settings"]]))
        return next(replies)

    monkeypatch.setattr(speed, "run_fresh", fake)
    models = candidates(whisper_config("tiny"), 5)[:2]
    table = measure_speed(models, SETTINGS, "float32", rounds=2)
    first, second = (1, 4, 1), (2, 4, 3)
    assert asked == [
        ("stock", [first, second]),
        ("stock", [second]),
        ("exact", [first, second]),
        ("exact", [second]),
        ("stock", [second]),
    ]
    assert table["stock"][SETTINGS[0]].reason == table["exact"][SETTINGS[0]].reason == "out of memory"
    assert table["stock"][SETTINGS[1]].milliseconds == [7.0, 9.0]
    assert speed_ups(table)["exact"] == {SETTINGS[0]: None, SETTINGS[1]: pytest.approx((7 / 3 + 9 / 2) / 2)}


@pytest.mark.parametrize("text, expected", [('{"a": 1}\nnoise\n{"a"', [{"a": 1}]), ("", [])])
def test_what_a_process_printed_before_its_end(monkeypatch, text, expected):
    class Done:
        returncode, stdout, stderr = -9, text, ""

    monkeypatch.setattr(fresh_process.subprocess, "run", lambda *args, **kwargs: Done)
    assert fresh_process.run_fresh("module", {}, 1) == (expected, "out of memory")


def test_the_process_times_every_model(monkeypatch):
    """In this process, tiny models: all kinds decode what is asked for; want of memory gives None."""
    decode, asked = speed_process.decode, []

    def counted(model, *numbers):
        asked.append((type(model).__name__, getattr(model, "hf_quantizer", None) is not None, *numbers))
        if numbers[0] == 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return decode(model, *numbers)

    monkeypatch.setattr(speed_process, "decode", counted)
    config = random_whisper(d_model=64).config
    for model in candidates(config, 9, int8_weights=True):
        job = {"config": model.config.to_dict(), "int8_weights": model.int8_weights, "compiled": False}
        job |= {"settings": [(3, 8, 1), (2, 8, 2)], "dtype": "float32", "device": "cpu"}
        nothing, found = speed_process.times(job)
        assert nothing is None and 0 < found < 10_000
        assert asked[-1][1:] == (model.int8_weights, 2, 2, 8)
    assert [name for name, *_ in asked[::3]] == ["WhisperForConditionalGeneration"] + [
        "WhisperMLAForConditionalGeneration"
    ] * 4


def test_the_command(jobs, tmp_path):
    files = ["--output", tmp_path / "speed.json", "--plot", tmp_path / "speed.png"]
    result = run("tiny", "--batch-size", 2, "--tokens", 8, "--int8-weights", "--json", *files)
    report = json.loads(result.stdout)
    assert report == json.loads((tmp_path / "speed.json").read_text())
    assert (tmp_path / "speed.png").read_bytes()[:4] == b"\x89PNG"
    assert [row["label"] for row in report["settings"]] == [
        "float32, batch 2, 8 tokens, greedy",
        "float32, batch 2, 8 tokens, 5 beams",
    ]
    found = report["settings"][0]["models"]["exact, int8 weights"]
    assert found["milliseconds_per_token"] == 5.0 and found["speed_up"] == 2.0 and found["rounds"] == [5.0] * 3
    table = run("tiny", "--dtype", "float32", "--dtype", "bfloat16", "--int8-weights", "--num-beams", 1).stdout
    assert "5.0 (2.00×)" in table and "–" in table and "bfloat16, batch 8" in table


def test_want_of_memory_in_the_table(monkeypatch):
    monkeypatch.setattr(speed, "run_fresh", lambda *rest: ([], "out of memory"))
    assert "out of memory" in run("tiny", "--batch-size", 1).stdout


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["nowhere"], "nowhere"),
        (["tiny", "--batch-size", 0], "batch-size"),
        (["tiny", "--dtype", "fp8"], "fp8"),
        (["tiny", "--int8-weights", "--dtype", "bfloat16"], "--dtype float32"),
        (["tiny", "--plot", "no/such/folder/a.png"], "there is no folder"),
    ],
)
def test_bad_input(arguments, complaint, jobs):
    result = run(*arguments)
    assert result.exit_code != 0 and complaint in result.stderr and not jobs


def test_a_gpu_that_is_not_there(monkeypatch, jobs):
    monkeypatch.setattr(benchmark_speed_command.torch.cuda, "is_available", lambda: False)
    result = run("tiny", "--device", "cuda")
    assert result.exit_code == 1 and "PyTorch finds no GPU" in result.stderr and not jobs


@pytest.mark.processes
def test_fresh_processes_answer():
    config = random_whisper(d_model=64).config
    table = measure_speed(candidates(config, 9)[:2], SETTINGS, "float32", rounds=1)
    assert all(timed.median > 0 for answers in table.values() for timed in answers.values())
