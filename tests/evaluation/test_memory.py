"""Memory computed from a configuration, and measured in a fresh process."""

import dataclasses
import json
from itertools import pairwise

import pytest
import torch
from transformers import WhisperForConditionalGeneration
from typer.testing import CliRunner

from tests.conftest import random_whisper
from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.command_line import benchmark_command
from whisper_mla.command_line.app import app
from whisper_mla.configuration import cache_size, whisper_config
from whisper_mla.evaluation import fresh_process, memory_process
from whisper_mla.evaluation.memory import (
    Setting,
    memory_of,
    parse_bytes,
    stock_and_latent,
    streams_that_fit,
    weight_bytes,
)
from whisper_mla.evaluation.memory_process import Measured, measure


def run(*arguments):
    return CliRunner().invoke(app, ["benchmark", "memory", *map(str, arguments)])


def test_weights_are_those_of_the_model(digits):
    low = WhisperMLAForConditionalGeneration.from_whisper(digits, kv_rank=64, cross_kv_rank=96)
    for model in (digits, low):
        assert weight_bytes(model.config, 4) == sum(one.numel() * one.element_size() for one in model.parameters())
        assert weight_bytes(model.config, 2) == weight_bytes(model.config, 4) / 2


def test_what_fits_is_the_largest_batch_whose_memory_does():
    config = whisper_config("small")
    for name, one in stock_and_latent(config).items():
        setting = Setting(1, 448, 5)
        streams = streams_that_fit(one, setting, 24 * 10**9)
        assert memory_of(one, dataclasses.replace(setting, batch_size=streams)).total <= 24 * 10**9, name
        assert memory_of(one, dataclasses.replace(setting, batch_size=streams + 1)).total > 24 * 10**9, name
    assert streams_that_fit(config, Setting(), 10**6) == 0


def test_positions_are_extended_and_stock_stands_beside_either():
    found = stock_and_latent(whisper_config("tiny"), 4096)
    assert list(found) == ["stock", "exact", "int8 latents", "int4 latents"]
    stock, exact = found["stock"], found["exact"]
    assert stock.max_target_positions == exact.max_target_positions == 4096
    assert weight_bytes(stock, 1) == weight_bytes(whisper_config("tiny"), 1) + (4096 - 448) * 384
    back = stock_and_latent(exact)
    assert list(back) == ["stock", "this model"] and back["stock"].model_type == "whisper"


@pytest.mark.parametrize("text, expected", [("24GB", 24 * 10**9), (" 1.5 GiB", 3 * 2**29), ("80gb", 80 * 10**9)])
def test_amounts(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["24", "GB", "-1GB", "0GB", "24 XB", "inf GB"])
def test_amounts_that_are_none(text):
    with pytest.raises(ValueError, match="expected an amount of memory, such as 24GB"):
        parse_bytes(text)


def test_the_command_tells_what_is_computed(tmp_path):
    result = run("base", "--what-fits", "24GB", "--output", tmp_path / "memory.json", "--json")
    report = json.loads(result.stdout)
    assert report == json.loads((tmp_path / "memory.json").read_text())
    rows = report["settings"]
    models = ["stock", "exact", "int8 latents", "int4 latents"]
    assert [(row["batch_size"], row["num_beams"], row["model"]) for row in rows[:8]] == [
        (1, beams, model) for beams in (1, 5) for model in models
    ]
    assert rows[4]["computed"]["cache"] == cache_size(whisper_config("base"), 1, 448, 5).total
    assert all("measured" not in row for row in rows)
    fits = report["what_fits"]["streams"]
    assert fits[1]["num_beams"] == 5 and fits[1]["exact"] > 3 * fits[1]["stock"] > 0
    tables = run("base", "--what-fits", "24GB").stdout
    assert "computed from the configuration" in tables and "Streams that fit into 24GB" in tables


def test_the_papers_protocol():
    rows = json.loads(run("small", "--protocol", "paper", "--json").stdout)["settings"]
    assert {row["batch_size"] for row in rows} == {64}
    assert [row["positions"] for row in rows[::4]] == [32, 64, 128, 256, 512, 1024, 2048, 4096]


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["base", "--what-fits", "much"], "such as 24GB"),
        (["nowhere"], "nowhere"),
        (["base", "--batch-size", 0], "batch"),
    ],
)
def test_bad_input(arguments, complaint):
    result = run(*arguments)
    assert result.exit_code != 0 and complaint in result.stderr


def test_what_was_measured_stands_beside_it(monkeypatch):
    gone = Measured(None, None, "out of memory")
    found = iter([Measured(300_000_000, 100_000_000), gone, gone, gone])
    monkeypatch.setattr(benchmark_command, "measure", lambda config, setting, seconds, device: next(found))
    table = run("tiny", "--measure", "--batch-size", 1, "--positions", 32, "--num-beams", 1).stdout
    assert "200.00 MB" in table and "300.00 MB" in table and "out of memory" in table
    assert "fresh process" in table


def test_want_of_memory_and_time_are_results(monkeypatch):
    class Done:
        returncode, stdout, stderr = 1, "", "RuntimeError: DefaultCPUAllocator: can't allocate memory"

    monkeypatch.setattr(fresh_process.subprocess, "run", lambda *args, **kwargs: Done)
    assert measure(whisper_config("tiny"), Setting()).reason == "out of memory"
    Done.stderr = "Traceback\nValueError: something else"
    with pytest.raises(RuntimeError, match="something else"):
        measure(whisper_config("tiny"), Setting())

    def late(*args, timeout, **kwargs):
        raise fresh_process.subprocess.TimeoutExpired("python", timeout)

    monkeypatch.setattr(fresh_process.subprocess, "run", late)
    assert measure(whisper_config("tiny"), Setting(), 5).reason == "out of time (5 s)"


def test_decoding_fills_the_positions(monkeypatch):
    """In this process: as many tokens as asked for, so that the cache is as long as computed."""
    asked = []
    monkeypatch.setattr(
        memory_process.GenerationMixin, "generate", lambda model, **kwargs: asked.append((type(model), kwargs))
    )
    default = torch.get_default_dtype()
    try:
        for config in stock_and_latent(random_whisper().config, 50).values():
            memory_process.measured_decoding(config, Setting(2, 50, 3, 4))
    finally:
        torch.set_default_dtype(default)
    ours = [WhisperMLAForConditionalGeneration] * 3
    assert [kind for kind, _ in asked] == [WhisperForConditionalGeneration, *ours]
    for _, kwargs in asked:
        assert kwargs["generation_config"].min_new_tokens == 49 and kwargs["generation_config"].num_beams == 3
    # Four bytes a value; 8 bits, or 4, and a scale and a minimum for 32 of them.
    widths = [kwargs["encoder_outputs"].last_hidden_state.shape for _, kwargs in asked]
    assert widths == [(2, 30, 32), (2, 30, 32), (2, 30, 36), (2, 30, 20)]


def test_peaks_of_one_decoding_by_length(capsys):
    default = torch.get_default_dtype()
    try:
        for config in list(stock_and_latent(random_whisper().config, 12).values())[:2]:
            memory_process.measured_decoding(config, Setting(2, 12, 1, 4), lengths=[4, 8, 12])
    finally:
        torch.set_default_dtype(default)
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["positions"] for one in found] == [4, 8, 12] * 2
    assert all(0 < first["peak"] <= second["peak"] for first, second in pairwise(found))


@pytest.mark.processes
def test_a_fresh_process_is_measured():
    config = random_whisper(d_model=64, max_source_positions=1500).config
    pair = stock_and_latent(config)
    stock, exact = (measure(pair[name], Setting(8, 40, 4, 4)) for name in ("stock", "exact"))
    for found in (stock, exact):
        assert found.reason is None and 50_000_000 < found.before <= found.peak < 10**10
        assert found.held > 8 * 1500 * 64 * 4  # the audio alone
