"""Options of `whisper-mla transcribe` beyond those of test_app.py, as a user gives them."""

import csv
import json
from functools import partial

import numpy as np
import pytest
import soundfile
import webvtt

from .invoke import run as run_command

run = partial(run_command, "transcribe")


@pytest.fixture(scope="module")
def stereo(clips, tmp_path_factory):
    """clip00 in the left channel, clip04 in the right."""
    left, right = clips["clip00"]["samples"], clips["clip04"]["samples"]
    both = np.zeros((max(len(left), len(right)), 2), dtype=np.float32)
    both[: len(left), 0], both[: len(right), 1] = left, right
    path = tmp_path_factory.mktemp("stereo") / "call.wav"
    soundfile.write(path, both, 16_000)
    return path


def test_a_speaker_in_each_channel(digits_folder, stereo, clips):
    text = run(digits_folder, stereo, "--channels", "split").stdout
    assert text == f"Channel 1: {clips['clip00']['text']}\nChannel 2: {clips['clip04']['text']}\n"
    rows = list(
        csv.DictReader(run(digits_folder, stereo, "--channels", "split", "--format", "csv").stdout.splitlines())
    )
    for channel, name in ((1, "clip00"), (2, "clip04")):
        spoken = " ".join(row["text"] for row in rows if row["channel"] == str(channel))
        assert spoken == clips[name]["text"]


def test_subtitles_of_a_width_with_words_highlighted(digits_folder, clips, tmp_path):
    clip = clips["clip04"]
    arguments = ["--format", "vtt", "--line-width", "20", "--lines", "1", "--highlight-words", "--output-dir", tmp_path]
    run(digits_folder, clip["path"], *arguments)
    path = tmp_path / f"{clip['path'].stem}.vtt"
    captions = webvtt.read(path).captions
    assert len(captions) == len(clip["text"].split()) == path.read_text().count("<u>")
    assert max(len(line) for one in captions for line in one.text.splitlines()) <= 20


def test_fallback_is_reported_and_can_be_turned_off(digits_folder, clips):
    unsure = [clips["clip00"]["path"], "--logprob-threshold", "0", "--no-speech-threshold", "none"]
    result = run(digits_folder, *unsure, "--temperatures", "0,0.1")
    assert "1 windows decoded at higher temperatures; 0.0 s without speech skipped." in result.stderr
    assert "temperatures" not in run(digits_folder, *unsure, "--temperatures", "0").stderr


def test_json_tells_the_quality_of_segments(digits_folder, clips):
    content = json.loads(
        run(digits_folder, clips["clip00"]["path"], "--format", "json", "--timestamps", "segment").stdout
    )
    segment = content["segments"][0]
    assert segment["temperature"] == 0 and -1 < segment["avg_logprob"] <= 0 and segment["compression_ratio"] > 0
    assert content["fallbacks"] == 0 and "channel" not in segment


def test_silence_is_skipped(digits_folder, tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(32_000), 16_000)
    result = run(digits_folder, tmp_path / "silence.wav", "--vad")
    assert result.stdout == "\n" and "2.0 s without speech skipped" in result.stderr


def test_a_truncated_file_is_transcribed_with_a_warning(digits_folder, clips, tmp_path):
    content = clips["long"]["path"].read_bytes()
    (tmp_path / "half.flac").write_bytes(content[: len(content) // 3])
    result = run(digits_folder, tmp_path / "half.flac")
    assert "Warning:" in result.stderr and "seems truncated" in result.stderr and result.stdout.strip()


def test_a_file_of_bare_samples_does_not_end_its_batch(digits_folder, clips, tmp_path):
    (tmp_path / "x.raw").write_bytes(bytes(4000))
    result = run(digits_folder, clips["clip00"]["path"], tmp_path / "x.raw", code=1)
    assert clips["clip00"]["text"] in result.stdout
    assert "x.raw: samples without a header" in result.stderr and "Traceback" not in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["--temperatures", "warm"],
        ["--temperatures", "1,0"],
        ["--no-speech-threshold", "2"],
        ["--highlight-words", "--format", "srt"],
        ["--line-width", "0", "--format", "srt"],
        ["--channels", "left"],
    ],
)
def test_wrong_usage(digits_folder, clips, arguments):
    run(digits_folder, clips["clip00"]["path"], *arguments, code=2)


def test_int8_weights_made_on_loading_or_before(digits_folder, clips, tmp_path):
    """Rounded by `convert`, or an exact conversion rounded by `transcribe`: the same words, smaller weights."""
    clip = clips["clip07"]
    for name, options in {"exact": [], "int8": ["--weights", "int8"]}.items():
        result = run_command("convert", digits_folder, tmp_path / name, *options)
        assert ("Weights: int8" in result.output) == (name == "int8")
    assert json.loads((tmp_path / "int8" / "config.json").read_text())["quantization_config"]
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("exact", "int8")]
    assert sizes[1] < sizes[0]  # of float16
    for arguments in (["exact", "--weights", "int8"], ["int8"], ["int8", "--weights", "int8"]):
        assert run(tmp_path / arguments[0], clip["path"], *arguments[1:]).stdout.strip() == clip["text"]
    for arguments, message in {
        (digits_folder, "--weights", "int8"): "int8 weights need a converted model. Convert it: whisper-mla convert",
        (tmp_path / "int8", "--dtype", "bfloat16"): "dtype='bfloat16' with int8 weights",
        (tmp_path / "int8", "--device", "cuda"): "device cuda: int8 weights run on CPUs only",
    }.items():
        assert message in run(arguments[0], clip["path"], *arguments[1:], code=1).stderr
