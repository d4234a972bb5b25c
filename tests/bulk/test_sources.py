"""Folders, manifests and datasets: what is found, what is refused, what goes to which process."""

import json

import datasets
import numpy as np
import pytest
import soundfile

from whisper_mla.bulk.dataset_rows import dataset_items
from whisper_mla.bulk.open_source import Files, open_source
from whisper_mla.bulk.sources import MissingFiles
from whisper_mla.transcription.audio import AudioError


@pytest.fixture
def folder(tmp_path):
    """Three recordings of 3, 1 and 2 tenths of a second, one of them below, and what is none."""
    folder = tmp_path / "recordings"
    (folder / "below").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    for name, length in {"b.wav": 3, "below/a.FLAC": 1, "c.wav": 2, ".hidden/d.wav": 1, ".e.wav": 1}.items():
        soundfile.write(folder / name, np.full(1600 * length, 0.1), 16_000, format="wav")
    (folder / "notes.doc").write_text("nothing to hear")
    return folder


def ids(source) -> list[str]:
    return [item.id for item in source.items]


def test_a_folder_is_searched(folder):
    found = open_source(str(folder))
    assert ids(found) == ["b.wav", "below/a.FLAC", "c.wav"] and found.count == 3
    assert [item.length() for item in found.items] == pytest.approx([0.3, 0.1, 0.2])
    assert len(found.items[1].load()) == 1600


def test_processes_share_by_size_and_leave_nothing(folder):
    found = open_source(str(folder))
    shares = [[item.id for item in found.share(rank, 2)] for rank in range(2)]
    assert shares == [["b.wav", "below/a.FLAC"], ["c.wav"]]


@pytest.mark.parametrize(
    "name, content",
    [
        ("m.txt", "c.wav\n\nbelow/a.FLAC\nc.wav\n"),
        ("m.csv", "path,language\nc.wav,German\nbelow/a.FLAC,\n"),
        ("m.tsv", "audio\tlanguage\nc.wav\tde\nbelow/a.FLAC\t\n"),
        ("m.jsonl", '{"file_name": "c.wav", "language": "de"}\n{"file_name": "below/a.FLAC"}\n'),
    ],
)
def test_manifests(folder, name, content):
    (folder / name).write_text(content)
    found = open_source(str(folder / name))
    assert ids(found) == ["c.wav", "below/a.FLAC"]  # each once, in the manifest's order
    assert [item.language for item in found.items] == ([None, None] if name == "m.txt" else ["de", None])
    assert found.in_order(["gone.wav", "below/a.FLAC", "c.wav"]) == ["c.wav", "below/a.FLAC", "gone.wav"]


def test_all_missing_files_are_named_unless_they_may_be_missing(folder):
    names = [f"gone {number}.wav" for number in range(30)]
    (folder / "m.txt").write_text("\n".join(["b.wav", *names]))
    with pytest.raises(MissingFiles, match=r"30 of 31 files are not there.*--skip-missing") as raised:
        open_source(str(folder / "m.txt"))
    assert raised.value.names == names
    found = open_source(str(folder / "m.txt"), skip_missing=True)
    assert found.count == 31
    with pytest.raises(AudioError, match="no such file"):
        found.items[1].load()
    assert found.items[1].length() is None


@pytest.mark.parametrize(
    "name, content, complaint",
    [
        ("m.txt", "\n", "names no file"),
        ("m.csv", "a,b\n1,2\n", "no column file_name or audio.*It has: a, b.*--audio-column"),
        ("m.csv", "path\nb.wav\n \n", "row 2 has no path"),
        ("m.xml", "<a/>", "expected a folder, a dataset or a manifest"),
    ],
)
def test_manifests_that_are_refused(folder, name, content, complaint):
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=complaint):
        open_source(str(folder / name))


def test_sources_that_are_not_there(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no audio in this folder"):
        open_source(str(tmp_path / "empty"))
    for name in ("nowhere", str(tmp_path / "nowhere"), "./a/b"):
        with pytest.raises(ValueError, match="no such folder or manifest"):
            open_source(name)


def rows(folder) -> datasets.Dataset:
    audio = [{"bytes": None, "path": str(folder / name)} for name in ("b.wav", "c.wav", "below/a.FLAC")]
    return datasets.Dataset.from_dict({"audio": audio, "id": ["x", "y", None]}).cast_column("audio", datasets.Audio())


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets(folder, tmp_path, streaming):
    rows(folder).save_to_disk(tmp_path / "saved")
    found = open_source(str(tmp_path / "saved"), streaming=streaming)
    assert found.count == (None if streaming else 3)
    shares = [list(found.share(rank, 2)) for rank in range(2)]
    assert [[item.id for item in share] for share in shares] == [["0:x", "2"], ["1:y"]]
    assert [len(item.load()) for share in shares for item in share] == [4800, 1600, 3200]
    assert found.in_order(["10:b", "2", "1:y"]) == ["1:y", "2", "10:b"]


def test_datasets_that_are_refused(folder, tmp_path):
    datasets.DatasetDict({"dev": rows(folder), "test": rows(folder)}).save_to_disk(tmp_path / "two")
    with pytest.raises(ValueError, match=r"has the splits dev, test\. Choose one with --split"):
        open_source(str(tmp_path / "two"))
    assert open_source(str(tmp_path / "two"), split="dev").count == 3
    with pytest.raises(ValueError, match=r"no column speech\. It has: audio, id"):
        list(dataset_items(rows(folder), "d", "speech"))
    broken = datasets.Dataset.from_dict({"audio": [{"bytes": b"no audio", "path": "x.wav"}, None]})
    for item in dataset_items(broken, "d"):
        with pytest.raises(AudioError, match=f"d.*{item.id}"):
            item.load()


def test_files_can_be_sent_to_another_process(folder):
    import pickle

    found = pickle.loads(pickle.dumps(open_source(str(folder))))
    assert isinstance(found, Files) and len(found.items[0].load()) == 4800
    assert json.dumps(ids(found))
