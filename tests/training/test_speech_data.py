"""Corpora of every kind, and what is wrong with them, said before the first step."""

import io
import json

import datasets
import numpy as np
import pytest
import soundfile
from datasets import Dataset, IterableDataset

from tests.training.conftest import speech, write_audio_folder
from whisper_mla.training import checks
from whisper_mla.training.checks import check_corpus
from whisper_mla.training.speech_data import audio_seconds, decode_audio, load_speech, mix
from whisper_mla.transcription.audio import AudioError


def encoded(samples: np.ndarray, rate: int = 16_000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="FLAC")
    return file.getvalue()


def write_parquet(folder, count: int = 4, **columns):
    """A data set as on the Hub: encoded audio in parquet, a configuration `other` with a split `train.500`."""
    folder.mkdir(parents=True)
    audio = [
        {"bytes": encoded(example["audio"]["array"]), "path": f"{i}.flac"} for i, example in enumerate(speech(count))
    ]
    Dataset.from_dict({"audio": audio, **columns}).to_parquet(folder / "data.parquet")
    card = "---\nconfigs:\n- config_name: other\n  data_files:\n  - {split: train.500, path: data.parquet}\n---\n"
    (folder / "README.md").write_text(card)
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_dataset_of_the_hubs_shape(tmp_path, streaming):
    folder = write_parquet(tmp_path / "corpus", sentence=["a", "b", "c", "d"], locale=["de", "en", "de", "en"])
    source = {"path": str(folder), "name": "other", "split": "train.500", "language_column": "locale"}
    data = load_speech({**source, "streaming": streaming})
    assert isinstance(data, IterableDataset if streaming else Dataset)
    rows = list(data)
    assert [(row["text"], row["language"]) for row in rows] == [("a", "de"), ("b", "en"), ("c", "de"), ("d", "en")]
    assert np.allclose(decode_audio(rows[1]["audio"]), speech(4)[1]["audio"]["array"], atol=1e-4)

    few = load_speech({**source, "streaming": streaming, "limit": 2})
    assert isinstance(few, Dataset)
    assert few["text"] == ["a", "b"]


def test_audio_folder(tmp_path):
    folder = write_audio_folder(tmp_path / "clips")
    data = load_speech({"path": str(folder), "language": "en"})
    assert data.column_names == ["audio", "text", "language"]
    assert np.allclose(decode_audio(data[2]["audio"]), speech(4)[2]["audio"]["array"], atol=1e-4)

    rows = [{"file_name": f"{i}.flac", "transcription": "x"} for i in range(4)]
    (folder / "metadata.csv").unlink()
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert load_speech({"path": str(folder)})["text"] == ["x"] * 4
    assert "text" not in load_speech({"path": str(folder), "text_column": None}).column_names


def test_audio_at_any_rate_and_of_several_channels():
    seconds = np.linspace(0, 1, 8000, endpoint=False, dtype=np.float32)
    tone = 0.5 * np.sin(2 * np.pi * 440 * seconds)
    at_8_khz = decode_audio({"array": tone, "sampling_rate": 8000})
    assert len(at_8_khz) == 16_000
    stereo = decode_audio({"bytes": encoded(np.stack([tone, tone], 1), 8000), "path": None})
    assert np.allclose(stereo, at_8_khz, atol=1e-3)
    assert audio_seconds({"bytes": encoded(tone, 8000), "path": None}) == 1.0
    assert audio_seconds({"array": tone, "sampling_rate": 8000}) == 1.0


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        ({"array": [0.1, 0.2], "sampling_rate": None}, "its sampling_rate is unknown"),
        ([0.1, 0.2], "audio of type list: the sampling rate is unknown"),
        ({"path": None, "bytes": None}, "neither path, bytes nor array"),
        ({"array": [], "sampling_rate": 16_000}, "expected finite samples of one channel"),
        ({"array": [0.1, float("nan")], "sampling_rate": 16_000}, "expected finite samples of one channel"),
        ({"bytes": b"not audio", "path": "a.flac"}, "a.flac"),
        ({"path": "no/such.flac", "bytes": None}, "no such file"),
    ],
)
def test_bad_audio(audio, message, label_maker):
    with pytest.raises(AudioError, match=message):
        decode_audio(audio)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "expected 'path'"),
        ({"path": "x", "languages": "en"}, "expected 'path' and optionally"),
        ({"path": "{folder}", "split": "train"}, "split: not for an audio folder"),
        ({"path": "{folder}", "text_column": "words"}, "no column text_column='words'. It has: audio, text, speaker"),
        ({"path": "{folder}", "language_column": "locale"}, "no column 'locale'. It has: audio, text, speaker"),
        ({"path": "{folder}", "limit": 0}, "limit=0: expected a number of examples"),
        ({"path": "{folder}/nothing", "split": "train"}, "cannot be loaded"),
        ({"path": "{folder}/nothing"}, "which split"),
    ],
)
def test_bad_source(tmp_path, source, message):
    folder = write_audio_folder(tmp_path / "clips")
    with pytest.raises(ValueError, match=message):
        load_speech({key: value.format(folder=folder) if key == "path" else value for key, value in source.items()})


def test_bad_audio_folders(tmp_path):
    folder = write_audio_folder(tmp_path / "clips")
    (folder / "1.flac").unlink()
    with pytest.raises(ValueError, match=r"1.flac: named in the metadata, but there is no such file"):
        load_speech({"path": str(folder)})
    (folder / "metadata.csv").write_text("file,text\n")
    with pytest.raises(ValueError, match="its metadata has no rows with a file_name"):
        load_speech({"path": str(folder)})


def test_no_transcripts(tmp_path):
    folder = write_parquet(tmp_path / "corpus", chapter=[1, 2, 3, 4])
    with pytest.raises(ValueError, match=r"no transcripts .* Name it with text_column"):
        load_speech({"path": str(folder), "name": "other", "split": "train.500"})


@pytest.fixture
def check(label_maker):
    def run(examples, as_stream=False, **options):
        data = Dataset.from_list(examples)
        data = data.to_iterable_dataset() if as_stream else data
        return check_corpus(data, label_maker, max_labels=24, max_seconds=2.0, name="corpus", **options)

    return run


@pytest.mark.parametrize("as_stream", [False, True])
def test_what_does_not_fit_is_counted_and_left_out(check, monkeypatch, as_stream):
    said = []
    monkeypatch.setattr(checks.logger, "warning", said.append)
    good = speech(3)
    long_label = {**good[0], "text": "one " * 10}  # 3 prefix tokens, 40 letters and spaces, end
    long_audio = speech(1, seconds=2.5)[0]
    kept = list(check([good[0], long_label, good[1], long_audio, long_label, good[2]], as_stream))
    assert [example["text"] for example in kept] == [example["text"] for example in good]
    if not as_stream:
        assert said == [
            "corpus: 2 of 6 examples left out: labels that are too long (more than 24 tokens).",
            "corpus: 1 of 6 examples left out: long audio (more than 2 s).",
        ]


def test_the_longest_label_that_fits(check, label_maker):
    text = "a" * (24 - len(label_maker("a", "en")) + 1)
    assert len(label_maker(text, "en")) == 24
    assert len(check([{**speech(1)[0], "text": text}])) == 1
    with pytest.raises(ValueError, match=r"corpus: no example can be used \(1 left out\)"):
        check([{**speech(1)[0], "text": text + "a"}])


@pytest.mark.parametrize("as_stream", [False, True])
@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"text": " "}, {}, "corpus, example 1: a transcript that is missing or empty. .* empty_text: drop"),
        ({"text": None}, {}, "corpus, example 1: a transcript that is missing or empty"),
        ({"language": "xx"}, {}, "corpus, example 1: language='xx': the tokenizer does not have it"),
        (
            {"audio": {"array": [0.0] * 40_000, "sampling_rate": 16_000}},
            {"long_audio": "error"},
            "long audio .more than 2 s",
        ),
        ({"audio": {"array": [0.0] * 9, "sampling_rate": None}}, {}, "corpus, example 1: .* sampling_rate is unknown"),
        ({}, {"empty_text": "ignore"}, "empty_text='ignore': expected 'drop' or 'error'"),
    ],
)
def test_what_is_wrong_raises_before_the_first_step(check, change, options, message, as_stream):
    good, bad = speech(2)
    with pytest.raises(ValueError, match=message):
        check([good, {**bad, **change}], as_stream, **options)


def test_options_that_leave_out(check):
    good = speech(2)
    assert len(check([good[0], {**good[1], "text": ""}], empty_text="drop")) == 1
    silent = [{"audio": example["audio"], "language": "en"} for example in good]
    assert len(check(silent, needs_text=False)) == 2
    with pytest.raises(ValueError, match="none of its first 2 examples can be used"):
        check([{**example, "text": ""} for example in good], as_stream=True, empty_text="drop")


def test_mixed_corpora():
    first, second = (Dataset.from_list([{**e, "text": name} for e in speech(8)]) for name in ("a", "b"))
    assert mix([first], None, 0) is first
    texts = mix([first, second], [0.5, 0.5], seed=0)["text"]
    assert set(texts) == {"a", "b"}
    assert list(texts) == list(mix([first, second], [0.5, 0.5], seed=0)["text"])
    with pytest.raises(ValueError, match=r"probabilities=.*expected 2 numbers"):
        mix([first, second], [0.5, 0.6], seed=0)
    with pytest.raises(ValueError, match="some datasets stream and others do not"):
        mix([first, second.to_iterable_dataset()], None, seed=0)


def test_offline_hub_name_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: (_ for _ in ()).throw(ConnectionError("offline")))
    with pytest.raises(ValueError, match=r"owner/name: cannot be loaded \(offline\)"):
        load_speech({"path": "owner/name", "split": "train"})
