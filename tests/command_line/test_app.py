"""The commands as a user runs them: what they print, what they leave on disk, how they exit."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import threading

import pytest
import soundfile
import torch
from transformers import AutoConfig, AutoModelForSpeechSeq2Seq, AutoProcessor

from whisper_mla import __version__
from whisper_mla.command_line import app as module

from .invoke import error_line, run


@pytest.fixture(scope="module")
def converted(digits_folder, tmp_path_factory):
    target = tmp_path_factory.mktemp("models") / "digits-mla"
    result = run("convert", digits_folder, target, "--kv-rank", "64,48,64,32", "--cross-kv-rank", "96")
    assert "92.7%" in result.stdout and "ranks 64, 48, 64, 32" in result.stdout
    return target


def test_help_teaches(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = run("--help").output
    for command in ("convert", "transcribe", "inspect", "export", "demo"):
        assert command in text
        assert f"Example: whisper-mla {command}" in re.sub(r"\s+", " ", run(command, "--help").output)


def test_version():
    assert run("--version").stdout.strip() == f"whisper-mla {__version__}"


def test_wrong_usage_exits_with_two(digits_folder, tmp_path, clips):
    clip = clips["clip00"]["path"]
    run(code=2)
    run("convert", code=2)
    run("convert", digits_folder, tmp_path / "x", "--kv-rank", "many", code=2)
    run("convert", digits_folder, tmp_path / "x", "--dtype", "int3", code=2)
    run("transcribe", digits_folder, clip, "--num-beams", "0", code=2)
    run("transcribe", digits_folder, clip, "--format", "srt", "--timestamps", "none", code=2)
    run("transcribe", digits_folder, clip, clips["clip01"]["path"], "--format", "vtt", code=2)
    run("transcribe", digits_folder, clip, "--resume", code=2)
    assert not (tmp_path / "x").exists()


# convert


def test_convert_writes_a_whole_checkpoint(converted):
    config = AutoConfig.from_pretrained(converted)
    assert (config.kv_rank, config.cross_kv_rank) == ([64, 48, 64, 32], 96)
    assert AutoModelForSpeechSeq2Seq.from_pretrained(converted, dtype="auto").dtype == torch.float16
    assert type(AutoProcessor.from_pretrained(converted)).__name__ == "WhisperProcessor"
    assert [path.name for path in converted.parent.iterdir()] == ["digits-mla"]


def test_convert_options(digits_folder, tmp_path):
    target = tmp_path / "model"
    run("convert", digits_folder, target, "--cross-kv-rank", "64", "--cross-kv-per-layer", "--audio-kv-rank", "128")
    config = AutoConfig.from_pretrained(target)
    assert (config.cross_kv_shared, config.audio_kv_rank, config.kv_rank) == (False, 128, None)
    assert "--overwrite" in error_line("convert", digits_folder, target)
    shown = run("convert", digits_folder, target, "--overwrite", "--latent-dtype", "int8,int4").stdout
    assert "Latents are rounded: int8 of the text, int4 of the audio." in shown
    assert AutoConfig.from_pretrained(target).latent_dtype == ["int8", "int4"]
    run("convert", digits_folder, target, "--overwrite", "--cross-cache", "key_value", "--dtype", "float32")
    config = AutoConfig.from_pretrained(target)
    assert (config.cross_cache, config.dtype) == ("key_value", torch.float32)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--kv-rank", "257"], "kv_rank=257: expected None, or an integer from 1 to d_model (256)"),
        (["--kv-rank", "64", "--method", "magic"], "method='magic': expected one of 'joint_svd'"),
        (["--kv-rank", "64,64"], "one rank for each of the 4 decoder layers"),
        (["--cross-kv-rank", "64", "--cross-cache", "key_value"], "cross_cache='latent'"),
        (["--latent-dtype", "int3"], "latent_dtype='int3': expected None (the model's dtype), 'int8', 'int4'"),
        (["--latent-dtype", "int4", "--kv-rank", "48"], "latent_group_size=32: does not divide kv_rank=48"),
        (["--latent-group-size", "64"], "latent_group_size=64: nothing is rounded without a latent_dtype"),
        (
            ["--latent-dtype", "int8", "--latent-group-size", "512"],
            "latent_group_size=512: does not divide d_model=256",
        ),
    ],
)
def test_convert_refuses_bad_ranks(digits_folder, tmp_path, arguments, expected):
    assert expected in error_line("convert", digits_folder, tmp_path / "x", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_convert_refuses_bad_sources(digits_folder, converted, tmp_path):
    target = tmp_path / "x"
    assert "no such folder" in error_line("convert", tmp_path / "nothing", target)
    assert "already a Whisper-MLA model" in error_line("convert", converted, target)
    (tmp_path / "file").write_text("")
    assert "not a folder" in error_line("convert", digits_folder, tmp_path / "file")
    assert not target.exists()


def test_the_source_is_never_written_over(digits_folder, converted, tmp_path):
    copied = tmp_path / "source"
    shutil.copytree(digits_folder, copied)
    assert "is the source itself" in error_line("convert", copied, tmp_path / "x" / ".." / "source", "--overwrite")
    assert AutoConfig.from_pretrained(copied).model_type == "whisper"
    assert "is the source itself" in error_line("export", converted, converted, "--overwrite")


def test_convert_without_a_processor_says_so(digits, tmp_path):
    digits.save_pretrained(tmp_path / "bare")
    assert "no processor" in run("convert", tmp_path / "bare", tmp_path / "model").stderr
    assert "no processor" in error_line("transcribe", tmp_path / "model", tmp_path / "x.wav")


def test_convert_on_a_full_disk_leaves_nothing(digits_folder, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.whisper_mla.WhisperMLAForConditionalGeneration, "save_pretrained", full)
    assert "No space left on device" in error_line("convert", digits_folder, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


# inspect and export


def test_inspect(converted, digits_folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert "one latent for all layers" in run("inspect", converted).stdout
    report = json.loads(run("inspect", converted, "--json", "--num-beams", "5", "--positions", "100").stdout)
    assert report["ranks"]["kv"] == [64, 48, 64, 32]
    assert report["cache"]["self_attention"]["model"] == 5 * 100 * 208 * 2
    assert report["cache"]["cross_attention"]["model"] == 500 * 96 * 2
    assert report["cache"]["cross_attention"]["stock"] == 5 * 500 * 2 * 256 * 4 * 2
    assert "A stock Whisper" in run("inspect", digits_folder).stdout
    assert "no such folder" in error_line("inspect", "/no/such/folder")
    run("inspect", converted, "--num-beams", "0", code=2)
    run("inspect", converted, "--positions", "0", code=2)


def test_export_is_a_stock_checkpoint(converted, clips, tmp_path):
    run("export", converted, tmp_path / "stock")
    assert AutoConfig.from_pretrained(tmp_path / "stock").model_type == "whisper"
    clip = clips["clip04"]["path"]
    result = run("transcribe", tmp_path / "stock", clip)
    assert "stock Whisper" in result.stderr
    assert result.stdout == run("transcribe", converted, clip).stdout
    assert "not a Whisper-MLA model" in error_line("export", tmp_path / "stock", tmp_path / "again")


# transcribe


def test_transcribe_prints_text_in_order(converted, clips):
    names = ["clip03", "clip00", "clip07"]
    result = run("transcribe", converted, *(clips[name]["path"] for name in names), "--batch-size", "2")
    expected = [f"{clips[name]['path']}: {clips[name]['text']}" for name in names]
    assert result.stdout.splitlines() == expected


def test_transcribe_one_file_prints_only_text(converted, clips):
    assert run("transcribe", converted, clips["clip00"]["path"]).stdout == clips["clip00"]["text"] + "\n"


@pytest.mark.processes
def test_redirected_output_of_a_terminal_session_is_written(converted, clips, tmp_path):
    """With a live progress bar on a terminal and standard output in a file."""
    terminal, ours = pty.openpty()
    program = [sys.executable, "-c", "from whisper_mla.command_line.app import main; main()"]
    with open(tmp_path / "out.txt", "w") as out:
        command = [*program, "transcribe", str(converted), str(clips["clip00"]["path"])]
        process = subprocess.Popen(command, stdout=out, stderr=ours, stdin=ours)
        os.close(ours)
        reader = threading.Thread(target=drain, args=(terminal,))
        reader.start()
        assert process.wait() == 0
        reader.join()
    assert (tmp_path / "out.txt").read_text() == clips["clip00"]["text"] + "\n"


def drain(terminal: int) -> None:
    """Read what a process writes to its terminal until it closes it."""
    try:
        while os.read(terminal, 1024):
            pass
    except OSError:
        pass
    os.close(terminal)


def test_transcribe_json_with_words(converted, clips):
    clip = clips["clip04"]
    result = run("transcribe", converted, clip["path"], "--format", "json", "--timestamps", "word", "--language", "en")
    content = json.loads(result.stdout)
    assert content["text"] == clip["text"] and content["language"] == "en"
    assert [word["text"] for word in content["words"]] == clip["text"].split()
    times = [time for word in content["words"] for time in (word["start"], word["end"])]
    assert times == sorted(times) and times[0] >= 0 and times[-1] <= 7
    both = run("transcribe", converted, clip["path"], clips["clip00"]["path"], "--format", "json")
    assert [item["text"] for item in json.loads(both.stdout)] == [clip["text"], clips["clip00"]["text"]]


def test_transcribe_writes_files_and_resumes(converted, clips, tmp_path):
    files = [clips["long"]["path"], clips["clip00"]["path"]]
    out = tmp_path / "deep" / "out"
    run("transcribe", converted, *files, "--format", "srt", "--output-dir", out, "--num-beams", "2")
    assert sorted(path.name for path in out.iterdir()) == sorted(file.stem + ".srt" for file in files)
    subtitles = (out / (files[0].stem + ".srt")).read_text()
    times = re.findall(r"(\d\d):(\d\d):(\d\d),(\d{3}) -->", subtitles)
    seconds = [int(h) * 3600 + int(m) * 60 + int(s) + int(ms) / 1000 for h, m, s, ms in times]
    assert len(seconds) > 5 and seconds == sorted(seconds) and seconds[-1] > 25
    (out / (files[1].stem + ".srt")).unlink()
    (out / (files[0].stem + ".srt")).write_text("kept")
    run("transcribe", converted, *files, "--format", "srt", "--output-dir", out, "--resume")
    assert (out / (files[0].stem + ".srt")).read_text() == "kept"
    assert clips["clip00"]["text"] in (out / (files[1].stem + ".srt")).read_text()


def test_transcribe_vtt(converted, clips):
    text = run("transcribe", converted, clips["clip00"]["path"], "--format", "vtt").stdout
    assert text.startswith("WEBVTT") and clips["clip00"]["text"] in text


def test_transcribe_leaves_no_folder_for_a_bad_model(clips, tmp_path):
    out = tmp_path / "out"
    error_line("transcribe", tmp_path / "nothing", clips["clip00"]["path"], "--output-dir", out)
    assert not out.exists()


def test_inspect_has_no_more_positions_than_the_model(converted):
    assert "the model has" in run("inspect", converted, "--positions", "100000", code=2).output


def test_transcribe_goes_on_after_bad_files(converted, clips, tmp_path):
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "garbage.wav").write_bytes(b"no audio at all")
    soundfile.write(tmp_path / "zero.wav", [], 16_000)
    good = clips["clip00"]
    bad = [tmp_path / name for name in ("missing.wav", "empty.wav", "garbage.wav", "zero.wav")]
    result = run("transcribe", converted, *bad, good["path"], code=1)
    assert result.stdout == f"{good['path']}: {good['text']}\n"
    for path, cause in zip(bad, ("no such file", "file is empty", "", "zero samples"), strict=True):
        assert re.search(rf"Error: {re.escape(str(path))}: .*{cause}", result.stderr)
    assert "4 of 5 files" in result.stderr


def test_transcribe_refuses_what_the_model_cannot_do(converted, clips, tmp_path):
    clip = clips["clip00"]["path"]
    assert "language='klingon': the model does not have it" in error_line(
        "transcribe", converted, clip, "--language", "klingon"
    )
    assert "device='nonsense'" in error_line("transcribe", converted, clip, "--device", "nonsense")
    assert "no such folder" in error_line("transcribe", tmp_path / "nothing", clip)
    twice = tmp_path / "a" / clip.name
    twice.parent.mkdir()
    twice.write_bytes(clip.read_bytes())
    assert "two are named" in error_line("transcribe", converted, clip, twice, "--output-dir", tmp_path / "out")


def test_unexpected_errors_are_one_line(converted, clips, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr("whisper_mla.command_line.transcribe_command.load_for_transcription", fail)
    assert error_line("transcribe", converted, clips["clip00"]["path"]) == "Error: RuntimeError: out of memory"
