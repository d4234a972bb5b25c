"""Folders with good and bad rows."""

import json

import numpy as np
import pytest
import soundfile

from whisper_mla.evaluation.audio_folders import read_audio_folder
from whisper_mla.evaluation.speech_datasets import read_dataset, read_datasets
from whisper_mla.transcription.audio import AudioError


@pytest.fixture
def folder(tmp_path):
    """Three rows; a.wav is there, at 8 kHz in stereo."""
    soundfile.write(tmp_path / "a.wav", np.zeros((800, 2)), 8000)
    write(tmp_path, "file_name,text,language\na.wav,one two,\nb.wav, three ,German\nc.wav,four,fr\n")
    return tmp_path


def write(folder, text, name="metadata.csv"):
    (folder / name).write_text(text, encoding="utf-8")


def test_rows(folder):
    utterances = read_audio_folder(folder, language="English")
    assert [one.id for one in utterances] == ["a.wav", "b.wav", "c.wav"]
    assert [one.reference for one in utterances] == ["one two", "three", "four"]
    assert [one.language for one in utterances] == ["en", "de", "fr"]
    assert {one.dataset for one in utterances} == {folder.name}
    assert utterances[0].load().shape == (1600,)
    with pytest.raises(AudioError, match=r"b\.wav: no such file"):
        utterances[1].load()
    assert read_audio_folder(folder)[0].language is None
    assert len(read_audio_folder(folder, limit=2)) == 2


def test_json_lines_and_other_text_columns(tmp_path):
    rows = [{"file_name": "a.wav", "transcription": "one", "note": "x"}]
    write(tmp_path, "\n".join(map(json.dumps, rows)) + "\n\n", "metadata.jsonl")
    assert read_audio_folder(tmp_path)[0].reference == "one"
    assert read_audio_folder(tmp_path, text_column="note")[0].reference == "x"


def test_a_byte_order_mark_is_no_part_of_a_column(tmp_path):
    (tmp_path / "metadata.csv").write_bytes("file_name,text\na.wav,ä\n".encode("utf-8-sig"))
    assert read_audio_folder(tmp_path)[0].reference == "ä"


def test_splits(folder):
    (folder / "test").mkdir()
    write(folder / "test", "file_name,text\nx.wav,nine\n")
    found = read_audio_folder(folder, split="test")
    assert (found[0].reference, found[0].dataset) == ("nine", f"{folder.name}/test")
    (folder / "metadata.csv").unlink()
    with pytest.raises(ValueError, match=r"no metadata\.csv or metadata\.jsonl .* Choose one with --split: test"):
        read_audio_folder(folder)
    with pytest.raises(ValueError, match=r"split='dev'.*neither a folder dev/ nor a file dev\.tsv"):
        read_audio_folder(folder, split="dev")


def test_common_voice_as_downloaded(tmp_path):
    (tmp_path / "clips").mkdir()
    soundfile.write(tmp_path / "clips" / "a.wav", np.zeros(160), 16_000)
    write(tmp_path, 'path\tsentence\tlocale\na.wav\tDer "Hund\tde\nb.wav\t你好\tzh-CN\n', "test.tsv")
    utterances = read_audio_folder(tmp_path, split="test")
    assert [(one.language, one.reference) for one in utterances] == [("de", 'Der "Hund'), ("zh", "你好")]
    assert len(utterances[0].load()) == 160


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file_name,words\na.wav,one\n", "no column text or transcription or sentence. It has: file_name, words"),
        ("name,text\na.wav,one\n", "no column file_name"),
        ("file_name,text\n", "has no row"),
        ("file_name,text\na.wav,one\nb.wav,\nc.wav\n", r"2 of 3 utterances have no transcript \(b.wav, c.wav\)"),
        ("file_name,text\na.wav,one\n,two\n", "row 2 has no file_name"),
        ("file_name,text\na.raw,one\n", "the sampling rate of a.raw is unknown"),
    ],
)
def test_bad_rows(tmp_path, content, message):
    write(tmp_path, content)
    with pytest.raises(ValueError, match=message):
        read_audio_folder(tmp_path)


def test_rows_without_transcript_can_be_left_out(tmp_path):
    write(tmp_path, "file_name,text\na.wav,one\nb.wav,  \n")
    assert [one.id for one in read_audio_folder(tmp_path, skip_empty=True)] == ["a.wav"]
    write(tmp_path, "file_name,text\nb.wav,\n")
    with pytest.raises(ValueError, match="no utterance with a transcript"):
        read_audio_folder(tmp_path, skip_empty=True)


@pytest.mark.parametrize(("line", "message"), [("{", "line 2 is not JSON"), ("[1]", "line 2 is not a JSON object")])
def test_bad_json_lines(tmp_path, line, message):
    write(tmp_path, '{"file_name": "a.wav", "text": "one"}\n' + line + "\n", "metadata.jsonl")
    with pytest.raises(ValueError, match=message):
        read_audio_folder(tmp_path)


def test_bad_folders(folder):
    with pytest.raises(ValueError, match="no such folder"):
        read_dataset(str(folder / "nothing"))
    write(folder, "", "metadata.jsonl")
    with pytest.raises(ValueError, match=r"both metadata\.csv and metadata\.jsonl"):
        read_dataset(str(folder))
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_bytes(b"file_name,text\na.wav,\xff\n")
    with pytest.raises(ValueError, match="Expected UTF-8"):
        read_dataset(str(folder))
    with pytest.raises(ValueError, match="limit=0"):
        read_dataset(str(folder), limit=0)


def test_several_folders(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    write(other, "file_name,text\nx.wav,nine\n")
    utterances = read_datasets([str(folder), str(other)])
    assert [one.dataset for one in utterances] == [folder.name] * 3 + [other.name]
    with pytest.raises(ValueError, match="two are named"):
        read_datasets([str(folder), str(folder)])
