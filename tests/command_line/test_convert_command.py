"""`calibrate`, and `convert` with calibration, budgets and methods, as a user runs them."""

import json
import re
import shutil

import matplotlib.image
import pytest
from transformers import AutoConfig, AutoProcessor

from tests.conftest import random_whisper
from tests.conversion.tiny import random_statistics
from tests.rounding import same_divergence
from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.command_line import convert_command as command
from whisper_mla.conversion import load_statistics, save_statistics
from whisper_mla.conversion.calibration import interrupted_gathering, statistics_file, time_estimate

from .invoke import error_line, run


@pytest.fixture(scope="module")
def recordings(clips, tmp_path_factory):
    """A folder with three clips and a file that is no audio."""
    folder = tmp_path_factory.mktemp("recordings")
    for number in range(3):
        shutil.copy(clips[f"clip0{number}"]["path"], folder)
    (folder / "broken.flac").write_bytes(b"no audio")
    return folder


@pytest.fixture(scope="module")
def calibrated(digits_folder, recordings, tmp_path_factory):
    path = tmp_path_factory.mktemp("statistics") / "digits.safetensors"
    result = run("calibrate", digits_folder, recordings, "--output", path, "--language", "en", "--encoder")
    return path, result


def test_calibrate_writes_a_file_and_says_what_it_is_good_for(calibrated):
    path, result = calibrated
    statistics = load_statistics(path)
    assert statistics.source["clips"] == 3 and len(statistics.held_out) == 1
    assert "encoder.layers.3.self_attn" in result.stdout and re.search(r"cross-attention .*1,000 .* 7 ", result.stdout)
    text = statistics.inputs["model.decoder.layers.0.self_attn"].count
    assert re.search(rf"decoder.layers.0.self_attn .* {text} .* {text // 128} ", result.stdout)
    assert "3 clips, " in result.stdout and "1 windows are held out" in result.stdout
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_calibrate_options(digits_folder, clips, tmp_path, monkeypatch):
    monkeypatch.setattr(interrupted_gathering, "SECONDS_BETWEEN", 0)
    monkeypatch.setattr(time_estimate, "_WORTH_TELLING", 0)
    monkeypatch.setattr(time_estimate, "is_progress_bar_enabled", lambda: True)
    output = tmp_path / "new" / "plain.safetensors"
    files = [clips[name]["path"] for name in ("clip00", "clip01", "clip02")]
    options = ["--no-fisher", "--held-out", "0"]
    result = run("calibrate", digits_folder, *files, "--output", output, *options)
    assert re.search(r"Calibration: 3 utterances, 2 passes, about \d+ s on this machine\n", result.stderr)
    assert "on this machine" not in result.stdout
    assert [file.name for file in output.parent.iterdir()] == [output.name]
    statistics = load_statistics(output)
    assert statistics.held_out == [] and statistics.source["clips"] == 3
    assert all(found.gradient is None for found in statistics.inputs.values())
    assert not any(".encoder.layers." in name for name in statistics.inputs)
    before = output.read_bytes()
    assert "--overwrite" in error_line("calibrate", digits_folder, *files, "--output", output)
    assert output.read_bytes() == before
    run("calibrate", digits_folder, files[0], "--output", output, "--no-fisher", "--no-encoder", "--overwrite")
    assert load_statistics(output).source["clips"] == 1


def test_a_budget_from_a_statistics_file(digits_folder, calibrated, tmp_path):
    target = tmp_path / "model"
    arguments = ["--calibration", calibrated[0], "--cache-cut", "0.95", "--force"]
    result = run("convert", digits_folder, target, *arguments)
    config = AutoConfig.from_pretrained(target)
    report = json.loads((target / "report.json").read_text())
    assert report["cache"]["model_bytes"] <= 0.05 * report["cache"]["stock_bytes"]
    assert all(rank % 4 == 0 for rank in [*config.kv_ranks, config.cross_kv_rank])
    assert matplotlib.image.imread(target / "report.png").shape[1] > 1000
    assert type(AutoProcessor.from_pretrained(target)).__name__ == "WhisperProcessor"
    flat = re.sub(r"\s+", " ", result.stdout)
    assert "Low-rank latents (fisher, floor=" in flat and "decoder.encoder_attn" in flat
    assert f"Chosen: {report['rank_choice']['reason']}." in flat
    quality = report["quality"]
    assert f"Measured on held-out calibration audio ({quality['tokens']} tokens): KL to stock" in flat
    record = WhisperMLAForConditionalGeneration.from_pretrained(target).conversion_record
    assert record["rank_choice"] == report["rank_choice"] and record["quality"] == quality
    assert record["calibration"]["clips"] == 3
    shown = re.sub(r"\s+", " ", run("inspect", target).stdout)
    assert "Low-rank latents (fisher" in shown and record["rank_choice"]["reason"] in shown


def test_audio_in_place_of_statistics(digits_folder, recordings, tmp_path):
    files = sorted(recordings.glob("clip*"))[:2]
    calibration = [item for file in files for item in ("--calibration", file)]
    ranks = ["--kv-rank", "8,256,256,256", "--method", "covariance", "--language", "en"]
    run("convert", digits_folder, tmp_path / "model", *calibration, *ranks, "--force", "--sequential", "--no-code")
    record = json.loads((tmp_path / "model" / "conversion.json").read_text())
    assert record["method"] == "covariance" and record["sequential"] and record["calibration"]["clips"] == 2
    assert not list((tmp_path / "model").glob("*.py"))


@pytest.mark.numerics
@pytest.mark.parametrize("flag", ["--refit", "--no-refit"])
def test_refit(digits_folder, recordings, tmp_path, flag):
    files = sorted(recordings.glob("clip*"))[:2]
    calibration = [item for file in files for item in ("--calibration", file)]
    ranks = ["--kv-rank", "256,256,256,8", "--language", "en", "--force", "--no-code"]
    flat = re.sub(r"\s+", " ", run("convert", digits_folder, tmp_path / "model", *calibration, *ranks, flag).stdout)
    record = json.loads((tmp_path / "model" / "conversion.json").read_text())
    card = (tmp_path / "model" / "README.md").read_text()
    if flag == "--no-refit":
        assert record["refit"] is None and "Refit of" not in flat and "refitted" not in card
        return
    refit = record["refit"]
    assert refit["kept"] and not same_divergence(refit["kl_after"], refit["kl_before"], logits_apart=1e-4)
    assert same_divergence(refit["kl_after"], record["quality"]["kl_per_token"], logits_apart=1e-4)
    assert f"KL on held-out audio {refit['kl_before']:.2g} before, {refit['kl_after']:.2g} after; kept." in flat
    assert f"Low-rank latents (fisher, floor={record['method_options']['floor']}, refit)" in flat
    assert "up projections refitted together" in card


def test_one_clip_leaves_nothing_to_measure_with(digits_folder, recordings, tmp_path):
    arguments = ["--calibration", next(recordings.glob("clip*")), "--kv-rank", "256,256,256,64", "--language", "en"]
    result = run("convert", digits_folder, tmp_path / "model", *arguments, "--no-refit", "--force", "--no-code")
    assert "Quality: not measured (no clips to hold out)." in result.stdout


def test_preserved_key_dims(digits_folder, tmp_path):
    arguments = ["--kv-rank", "40", "--preserved-key-dims", "4"]
    result = run("convert", digits_folder, tmp_path / "model", *arguments)
    assert "Low-rank latents (joint_svd, preserved_key_dims=4)" in result.stdout
    assert "Quality: not measured (no audio of use: give --calibration)" in result.stdout


def test_an_exact_conversion_has_no_latents_to_show(digits_folder, tmp_path):
    result = run("convert", digits_folder, tmp_path / "model")
    assert "Low-rank" not in result.stdout and "Quality" not in result.stdout
    assert (tmp_path / "model" / "report.json").is_file() and not (tmp_path / "model" / "report.png").exists()


def test_help_names_every_option():
    text = re.sub(r"\s+", " ", run("convert", "--help").output)
    for option in (
        "--method",
        "--calibration",
        "--language",
        "--cache-cut",
        "--cache-bytes",
        "--max-kl",
        "--rank-multiple",
        "--min-rank",
        "--max-rank",
        "--preserved-key-dims",
        "--preserved-key-selection",
        "--sequential",
        "--refit",
        "--latent-dtype",
        "--force",
    ):
        assert option in text
    for method in ("joint_svd", "layer_norm", "covariance", "attention", "fisher"):
        assert method in text
    text = re.sub(r"\s+", " ", run("calibrate", "--help").output)
    assert "Example: whisper-mla calibrate" in text and "ranscripts" in text
    for option in ("--output", "--held-out", "--no-fisher", "--no-encoder", "--overwrite", "--language"):
        assert option in text


# Bad input


def test_wrong_usage_exits_with_two(digits_folder, calibrated, recordings, tmp_path):
    convert = ["convert", digits_folder, tmp_path / "x", "--kv-rank", "40"]
    run(*convert, "--calibration", calibrated[0], "--calibration", recordings, code=2)
    run(*convert, "--cache-cut", "most", code=2)
    assert "'abc': expected an integer" in run(*convert, "--cross-kv-rank", "abc", code=2).output
    run("calibrate", digits_folder, code=2)
    run("calibrate", digits_folder, recordings, "--output", tmp_path / "x.bin", code=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--kv-rank", "8", "--method", "fisher"], "method='fisher' needs calibration audio or a statistics file"),
        (["--kv-rank", "8", "--method", "fisher", "--preserved-key-dims", "4"], "It is an option of 'joint_svd'"),
        (["--kv-rank", "8", "--preserved-key-selection", "2-norm"], "needs preserved_key_dims"),
        (["--kv-rank", "8", "--calibration", "{empty}"], "no audio files in this folder"),
        (["--kv-rank", "8", "--calibration", "{empty}/x.wav"], "x.wav: no such file"),
        (["--kv-rank", "8", "--calibration", "{empty}/x.safetensors"], "no such statistics file"),
        (["--kv-rank", "8", "--calibration", "{other}"], "other.safetensors: these statistics are of another model"),
        (["--kv-rank", "8", "--calibration", "{damaged}"], "damaged statistics file"),
        (["--kv-rank", "200", "--calibration", "{good}"], "too few for rank 200, which needs at least 1,600"),
        (["--kv-rank", "8", "--calibration", "{good}", "--sequential"], "not a statistics file"),
        (["--kv-rank", "8", "--calibration", "{good}", "--refit"], "refit=True: needs calibration audio"),
        (["--cache-cut", "0.999", "--calibration", "{good}"], "cannot be met. The smallest possible cache is"),
        (["--cache-bytes", "1kB"], "cache_bytes=1kB: cannot be met. The smallest possible cache is"),
        (["--cache-bytes", "12 apples"], "cache_bytes='12 apples': expected bytes"),
        (["--calibration", "{good}"], "calibration: has nothing to calibrate, the conversion is exact. Give kv_rank"),
        (["--max-shard-size", "5G"], "max_shard_size='5G': expected a positive whole number with a unit"),
        (["--cache-cut", "95"], "cache_cut=95.0: expected a share"),
        (["--cache-cut", "0.9", "--max-kl", "0.1", "--calibration", "{good}"], "cache_cut, max_kl: give one of them"),
        (["--cache-cut", "0.9", "--cross-kv-per-layer"], "needs the shared cross-attention latent"),
        (["--max-kl", "0.1"], "max_kl needs calibration audio"),
        (["--max-kl", "1e-9", "--max-rank", "8", "--force", "--calibration", "{good}"], "The best found is"),
        (["--min-rank", "8"], "min_rank=8: only with cache_cut"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_leaves_nothing(
    digits_folder, calibrated, tiny_file, tmp_path_factory, tmp_path, arguments, expected
):
    empty = tmp_path_factory.mktemp("empty")
    damaged = tmp_path_factory.mktemp("damaged") / "damaged.safetensors"
    damaged.write_bytes(calibrated[0].read_bytes()[:-100])
    places = {"empty": empty, "other": tiny_file, "damaged": damaged, "good": calibrated[0]}
    arguments = [argument.format(**places) for argument in arguments]
    assert expected in error_line("convert", digits_folder, tmp_path / "model", *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory):
    """Statistics of another model."""
    path = tmp_path_factory.mktemp("other") / "other.safetensors"
    save_statistics(random_statistics(random_whisper(), gradients=False), path)
    return path


def test_force_goes_on_with_too_few_vectors(digits_folder, calibrated, tmp_path):
    arguments = ["--kv-rank", "200", "--calibration", calibrated[0], "--method", "covariance"]
    assert "--force" in error_line("convert", digits_folder, tmp_path / "model", *arguments)
    run("convert", digits_folder, tmp_path / "model", *arguments, "--force")


def test_places_that_cannot_be_written_are_refused_before_the_work(digits_folder, recordings, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "from_whisper", None)
    monkeypatch.setattr(command, "load_whisper", None)
    (tmp_path / "file").write_text("")
    target = tmp_path / "file" / "folder" / "model"
    assert f"{target}: cannot be written" in error_line("convert", digits_folder, target)
    output = ["--output", f"{target}.safetensors"]
    assert "model.safetensors: cannot be written" in error_line("calibrate", digits_folder, recordings, *output)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_calibrate_refuses(digits_folder, recordings, tmp_path, monkeypatch):
    output = tmp_path / "x.safetensors"
    arguments = ["--output", output, "--no-fisher", "--no-encoder"]
    (tmp_path / "empty").mkdir()
    assert "no audio files" in error_line("calibrate", digits_folder, tmp_path / "empty", *arguments)
    broken = error_line("calibrate", digits_folder, recordings / "broken.flac", *arguments)
    assert "no audio that can be read" in broken and "broken.flac" in broken and ".." not in broken
    assert "no such folder" in error_line("calibrate", tmp_path / "nothing", recordings, *arguments)
    assert "held_out=1.5" in error_line("calibrate", digits_folder, recordings, *arguments, "--held-out", "1.5")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(statistics_file, "save_file", full)
    clip = next(recordings.glob("clip*"))
    assert "No space left on device" in error_line("calibrate", digits_folder, clip, *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
