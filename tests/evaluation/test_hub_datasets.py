"""Rows of `datasets` datasets of the shapes that the named ones have. No network: the Hub's answer is made here."""

import io

import datasets
import numpy as np
import pytest
import soundfile
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from whisper_mla.evaluation import hub_datasets
from whisper_mla.evaluation.hub_datasets import (
    NAMED_DATASETS,
    configuration_language,
    read_hub_dataset,
    utterances_of_dataset,
)
from whisper_mla.evaluation.speech_datasets import read_dataset
from whisper_mla.transcription.audio import AudioError


def encoded(seconds: float = 0.1, rate: int = 8000, kind: str = "FLAC") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.full(int(seconds * rate), 0.25), rate, format=kind)
    return file.getvalue()


def table(decode=True, **columns) -> datasets.Dataset:
    """Two rows with encoded audio."""
    rows = {
        "audio": [{"bytes": encoded(), "path": "a.flac"}, {"bytes": encoded(0.2, 16_000, "WAV"), "path": None}],
        "text": ["ONE", "TWO"],
        **columns,
    }
    # As read from Parquet: encoding through `datasets.Audio` would need torchcodec.
    return datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio(decode=decode))


@pytest.mark.parametrize("streaming", [False, True])
def test_encoded_audio_is_read_without_torchcodec(streaming):
    dataset = table(id=["x-1", "x-2"])
    dataset = dataset.to_iterable_dataset() if streaming else dataset
    utterances = utterances_of_dataset(dataset, "named", language="English")
    assert [(one.id, one.reference, one.language) for one in utterances] == [
        ("0:x-1", "ONE", "en"),
        ("1:x-2", "TWO", "en"),
    ]
    samples = [one.load() for one in utterances]
    assert [len(one) for one in samples] == [1600, 3200]
    assert np.allclose(samples[1], 0.25, atol=1e-3) and samples[0].dtype == np.float32


def test_damaged_bytes_are_named_and_no_temporary_file_is():
    dataset = table(audio=[{"bytes": b"nonsense", "path": "a.flac"}] * 2)
    with pytest.raises(AudioError, match=r"^named 0:a\.flac: ") as raised:
        utterances_of_dataset(dataset, "named")[0].load()
    assert "tmp" not in str(raised.value)


def test_arrays_and_paths(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(160), 16_000)
    rows = {"audio": [{"array": [0.5] * 800, "sampling_rate": 8000}], "sentence": ["one"]}
    assert len(utterances_of_dataset(datasets.Dataset.from_dict(rows), "named")[0].load()) == 1600
    rows = {"audio": [str(tmp_path / "a.wav")], "sentence": ["one"]}
    assert len(utterances_of_dataset(datasets.Dataset.from_dict(rows), "named")[0].load()) == 160


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"audio": [{"array": [0.5], "sampling_rate": None}], "text": ["a"]}, "its sampling_rate is unknown"),
        ({"audio": [None], "text": ["a"]}, "row 0:0 has no audio"),
        ({"audio": ["a.raw"], "text": ["a"]}, "sampling rate of a.raw is unknown"),
        ({"audio": ["a.wav"], "words": ["a"]}, "no column text or transcription or sentence"),
        ({"sound": ["a.wav"], "text": ["a"]}, "no column audio. It has: sound, text"),
        ({"audio": ["a.wav", "b.wav"], "text": ["a", None]}, "1 of 2 utterances have no transcript"),
    ],
)
def test_bad_rows(rows, message):
    with pytest.raises(ValueError, match=message):
        utterances_of_dataset(datasets.Dataset.from_dict(rows), "named")


def test_rows_can_be_limited_and_empty_ones_left_out():
    dataset = table(text=["", "TWO"])
    assert [one.id for one in utterances_of_dataset(dataset, "named", skip_empty=True)] == ["1:1"]
    assert len(utterances_of_dataset(table(), "named", limit=1)) == 1


@pytest.fixture
def asked(monkeypatch):
    """What the Hub was asked for; it answers with two rows."""
    calls = []

    def load_dataset(*arguments, **options):
        calls.append((*arguments, options))
        name = next((n for n, known in NAMED_DATASETS.items() if known.repository == arguments[0]), None)
        return table(**({NAMED_DATASETS[name].text_column: ["a", "b"]} if name else {})).to_iterable_dataset()

    monkeypatch.setattr(hub_datasets.datasets, "load_dataset", load_dataset)
    return calls


@pytest.mark.parametrize(
    ("name", "repository", "configuration", "language"),
    [
        ("librispeech-clean", "openslr/librispeech_asr", "clean", "en"),
        ("librispeech-other", "openslr/librispeech_asr", "other", "en"),
        ("common-voice:sv-SE", "fixie-ai/common_voice_17_0", "sv-SE", "sv"),
        ("fleurs:cmn_hans_cn", "google/fleurs", "cmn_hans_cn", "zh"),
        ("owner/speech:part", "owner/speech", "part", None),
        ("owner/speech", "owner/speech", None, None),
    ],
)
def test_named_datasets(asked, name, repository, configuration, language):
    utterances = read_dataset(name)
    assert asked == [(repository, configuration, {"split": "test", "streaming": True})]
    assert [one.language for one in utterances] == [language] * 2
    assert utterances[0].dataset == name and len(utterances[0].load()) == 1600


def test_options_of_named_datasets(asked):
    utterances = read_hub_dataset("fleurs:de_de", split="validation", language="fr", limit=1)
    assert asked[0][2]["split"] == "validation"
    assert [(one.language, one.dataset) for one in utterances] == [("fr", "fleurs:de_de/validation")]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("librispeech", "neither a folder nor one of librispeech-clean, librispeech-other, common-voice, fleurs"),
        ("fleurs", "say which language, as in fleurs:de_de"),
        ("librispeech-clean:de", "no configurations"),
    ],
)
def test_bad_names(asked, name, message):
    with pytest.raises(ValueError, match=message):
        read_dataset(name)
    assert not asked


def test_without_a_network_it_says_so(monkeypatch):
    def load_dataset(*arguments, **options):
        raise ConnectionError("no route")

    monkeypatch.setattr(hub_datasets.datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match=r"cannot be opened \(ConnectionError: no route\)\. It needs a network"):
        read_dataset("librispeech-clean")


@pytest.mark.parametrize(
    ("configuration", "language"),
    [("de_de", "de"), ("nb_no", "no"), ("fil_ph", "tl"), ("yue_hant_hk", "yue"), ("zh-CN", "zh"), ("pt", "pt")],
)
def test_languages_of_configurations(configuration, language):
    assert configuration_language(configuration) == language
    assert language in LANGUAGES
