import csv
import json
import logging
import shutil

import datasets
import numpy as np
import pytest
import soundfile
import torch

from whisper_mla.conversion import ConversionError, calibrate
from whisper_mla.conversion.calibration.calibrate import _spread
from whisper_mla.conversion.calibration.clips import read_clips


@pytest.fixture
def folder(clips, tmp_path):
    """Two clips in the folder, one in a sub-folder, and files that are no audio."""
    (tmp_path / "more").mkdir()
    for name, target in (("clip00", "a.flac"), ("clip01", "b.flac"), ("clip02", "more/a.flac")):
        shutil.copy(clips[name]["path"], tmp_path / target)
    (tmp_path / "notes.txt").write_text("not audio")
    return tmp_path


def refusal(calibration) -> str:
    with pytest.raises(ConversionError) as error:
        read_clips(calibration)
    return str(error.value)


def test_files_and_folders(clips, folder):
    samples = [clips[name]["samples"] for name in ("clip00", "clip01", "clip02")]
    for calibration in (folder, str(folder), [folder], [folder / "a.flac", str(folder / "b.flac"), folder / "more"]):
        found = read_clips(calibration)
        assert [clip.name.removeprefix(f"{folder}/") for clip in found] == ["a.flac", "b.flac", "more/a.flac"]
        for clip, expected in zip(found, samples, strict=True):
            assert clip.text is None and clip.samples.dtype == np.float32 and np.array_equal(clip.samples, expected)
    assert [clip.name for clip in read_clips(folder / "a.flac")] == [f"{folder}/a.flac"]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_transcripts_of_a_folder(folder, kind):
    """`more/a.flac` has a transcript of its own, not that of `a.flac`."""
    rows = [{"file_name": "a.flac", "text": "one"}, {"file_name": "more/a.flac", "text": "two"}]
    with open(folder / f"metadata.{kind}", "w", newline="", encoding="utf-8-sig") as file:
        if kind == "csv":
            writer = csv.DictWriter(file, ["file_name", "text"])
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n\n" for row in rows)
    assert [clip.text for clip in read_clips(folder)] == ["one", None, "two"]


@pytest.mark.parametrize(
    ("name", "content"),
    [("metadata.jsonl", b"{"), ("metadata.jsonl", b"[1]"), ("metadata.csv", b"file_name,text\na.flac,\xff\xfe\n")],
)
def test_damaged_transcripts(folder, name, content):
    (folder / name).write_bytes(content)
    message = refusal(folder)
    assert str(folder / name) in message and "cannot be read" in message


def test_arrays():
    wave = np.sin(np.arange(8000) / 9)
    for calibration in ([wave, wave], np.stack([wave, wave]), [torch.tensor(wave), wave.tolist()]):
        found = read_clips(calibration)
        assert len(found) == 2
        assert all(clip.samples.dtype == np.float32 and np.allclose(clip.samples, wave) for clip in found)
    for alone in (wave, torch.tensor(wave), {"audio": {"array": wave, "sampling_rate": 16_000}}):
        (clip,) = read_clips(alone)
        assert np.allclose(clip.samples, wave)


@pytest.mark.parametrize(
    "array",
    [np.zeros(0), np.zeros((2, 9)), np.full(9, np.nan), (np.ones(9) * 3000).astype(np.int16)],
    ids=["empty", "two channels", "NaN", "integers"],
)
def test_arrays_that_are_no_audio(array, caplog):
    with caplog.at_level(logging.WARNING):
        assert "no audio that can be read: clip 0: expected a finite float array" in refusal([array])
        assert len(read_clips([array, np.ones(9)])) == 1
    assert "Left out of the calibration: clip 0" in caplog.text


def test_silence_is_left_out_and_little_audio_is_warned_of(caplog):
    quiet, faint = np.full(16_000, 5e-5), np.full(16_000, 2e-4)
    assert refusal([quiet]).startswith("calibration: no audio that can be read: clip 0: holds nothing but silence")
    with caplog.at_level(logging.WARNING):
        assert len(read_clips([quiet, faint])) == 1
    assert "clip 0: holds nothing but silence" in caplog.text
    assert "1.0 s of audio tell little" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert len(read_clips([np.full(160_000, 0.1)])) == 1
    assert caplog.text == ""


def test_rows_of_a_dataset(clips):
    samples, path = clips["clip00"]["samples"], str(clips["clip00"]["path"])
    rows = [
        {"audio": {"array": samples, "sampling_rate": 16_000}, "sentence": "decoded"},
        {"audio": {"path": path, "bytes": None}, "text": "path"},
        {"audio": {"path": "clip.flac", "bytes": clips["clip00"]["path"].read_bytes()}, "transcription": "bytes"},
        {"audio": path, "text": None},
    ]
    found = read_clips(rows)
    assert [clip.text for clip in found] == ["decoded", "path", "bytes", None]
    assert all(np.array_equal(clip.samples, samples) for clip in found)


def test_a_dataset(clips):
    names = ("clip00", "clip01")
    text = [clips[name]["text"] for name in names]
    decoded = [{"array": clips[name]["samples"], "sampling_rate": 16_000} for name in names]
    files = [str(clips[name]["path"]) for name in names]
    stored = datasets.Dataset.from_dict({"audio": files, "text": text}).cast_column("audio", datasets.Audio())
    for dataset in (datasets.Dataset.from_dict({"audio": decoded, "text": text}), stored, stored.to_iterable_dataset()):
        found = read_clips(dataset)
        assert [clip.text for clip in found] == text
        for clip, name in zip(found, names, strict=True):
            assert np.array_equal(clip.samples, clips[name]["samples"])


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"audio": {"array": np.zeros(9), "sampling_rate": 8000}}, "row 0: sampling rate 8000, expected 16000"),
        ({"audio": {"array": np.zeros(9)}}, "row 0: sampling rate None, expected 16000"),
        ({"audio": {"path": "/no/such.wav", "bytes": None}}, "/no/such.wav: no such file"),
        ({"text": "one"}, "row 0: no audio"),
        ({"audio": 3}, "row 0: no audio"),
    ],
)
def test_rows_without_usable_audio(row, expected):
    assert expected in refusal([row])


def test_unreadable_files_are_named_and_left_out(folder, caplog):
    (folder / "broken.wav").write_bytes(b"no sound at all")
    (folder / "silent.wav").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert len(read_clips([folder, folder / "missing.wav"])) == 3
    for name in ("broken.wav", "silent.wav", "missing.wav"):
        assert any(str(folder / name) in record.message for record in caplog.records), name
    assert refusal([folder / "broken.wav", folder / "silent.wav"]).startswith("calibration: no audio that can be read")


def test_nothing_to_read(tmp_path):
    assert "no audio files in this folder" in refusal(tmp_path)
    assert str(tmp_path) in refusal([tmp_path])
    assert "no audio that can be read" in refusal([])
    assert "calibration=5: expected audio files" in refusal(5)


# calibrate()


def test_calibrate_holds_out_a_share_evenly_spread(digits, digits_statistics):
    facts = digits_statistics.source
    assert (facts["clips"], facts["held_out_windows"], facts["with_transcript"]) == (8, 2, 0)
    assert len(digits_statistics.held_out) == 2 and len(digits_statistics.examples) == 6
    assert facts["text_vectors"] == sum(len(example.decoder_input_ids) for example in digits_statistics.examples)
    assert digits_statistics.inputs["model.encoder.layer_norm"].count == facts["audio_vectors"] == 6 * 500
    assert digits_statistics.inputs["model.decoder.layers.0.self_attn"].count == facts["text_vectors"]
    assert facts["model"] == "whisper-digits" and facts["seconds"] > 20


def test_the_share_held_out():
    assert _spread(12, 0.25) == {2, 6, 10}
    assert _spread(2, 0.25) == {1} and _spread(1, 0.25) == set() and _spread(9, 0) == set()
    assert all(len(_spread(count, 0.99)) == count - 1 for count in (2, 3, 4, 50))  # never all


def test_calibrate_refuses(digits, processor, clip_paths):
    with pytest.raises(ConversionError, match="processor is needed"):
        calibrate(digits, clip_paths)
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(ConversionError, match=r"held_out=.*expected a share"):
            calibrate(digits, clip_paths, processor, held_out=share)


def test_half_precision_is_calibrated_in_float32(digits, digits_folder, processor, clips):
    """float32 weights that are those of the float16 checkpoint have its checksum, and its statistics."""
    half = type(digits).from_pretrained(digits_folder)
    assert half.dtype == torch.float16
    audio = [clips["clip00"]["samples"]]
    statistics = [
        calibrate(model, audio, processor, language="en", gradients=False, encoder=False) for model in (half, digits)
    ]
    assert statistics[0].source == statistics[1].source and half.dtype == torch.float16
    for name, found in statistics[0].inputs.items():
        assert torch.equal(found.covariance, statistics[1].inputs[name].covariance)
    assert soundfile.info(clips["clip00"]["path"]).samplerate == 16_000
