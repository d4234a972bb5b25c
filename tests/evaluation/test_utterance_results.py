"""Results on disk: appended, cut short, continued, never mixed."""

import json

import pytest

from whisper_mla.evaluation.utterance_results import ResultsFile, UtteranceResult

SETTINGS = {"model": "m", "num_beams": 1}


def result(index: int, hypothesis: str = "ein") -> UtteranceResult:
    return UtteranceResult(index, f"{index}.wav", "d", "de", "éin", hypothesis, 1.5, 0.25)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "evaluation.m[1].jsonl"  # a name that a glob would read as a pattern


def names(path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir())


def test_appended_results_are_found_again(path):
    ResultsFile(path, SETTINGS).append([result(1), result(0)])
    ResultsFile(path, SETTINGS, rank=1).append([result(2)])
    assert names(path) == ["evaluation.m[1].part0.jsonl", "evaluation.m[1].part1.jsonl"]
    found = ResultsFile(path, SETTINGS).collect()
    assert found == {index: result(index) for index in range(3)}
    assert names(path) == [path.name]
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert lines[0] == {"settings": SETTINGS} and [line["index"] for line in lines[1:]] == [0, 1, 2]
    assert ResultsFile(path, SETTINGS).collect() == found


def test_nothing_there(path):
    assert ResultsFile(path, SETTINGS).collect() == {} and names(path) == []


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_line_cut_short_is_dropped(path, cut):
    file = ResultsFile(path, SETTINGS)
    file.append([result(0), result(1)])
    part = path.parent / "evaluation.m[1].part0.jsonl"
    part.write_bytes(part.read_bytes()[:-cut])
    assert ResultsFile(path, SETTINGS).collect() == {0: result(0)}
    file.append([result(1)])
    assert ResultsFile(path, SETTINGS).collect() == {0: result(0), 1: result(1)}


def test_settings_cut_short_leave_nothing(path):
    (path.parent / "evaluation.m[1].part0.jsonl").write_text('{"settings": {"mod')
    assert ResultsFile(path, SETTINGS).collect() == {}


def test_later_results_replace_earlier_ones(path):
    file = ResultsFile(path, SETTINGS)
    file.write([result(0, "alt"), result(1)])
    file.append([result(0, "neu")])
    assert file.collect()[0].hypothesis == "neu"


def test_results_of_other_settings_are_never_mixed(path):
    ResultsFile(path, SETTINGS).append([result(0)])
    with pytest.raises(ValueError, match=r"results of other settings \(num_beams\).*--overwrite"):
        ResultsFile(path, {**SETTINGS, "num_beams": 5}).collect()
    assert ResultsFile(path, SETTINGS).collect() == {0: result(0)}


@pytest.mark.parametrize("content", ["hello\n", '{"a": 1}\n', '{"settings": {}}\n{"index": 1}\n', "[]\n"])
def test_a_file_of_another_kind_is_refused_and_kept(path, content):
    path.write_text(content)
    with pytest.raises(ValueError, match="not a file of results"):
        ResultsFile(path, {}).collect()
    assert path.read_text() == content


def test_remove_starts_afresh(path):
    file = ResultsFile(path, SETTINGS)
    file.write([result(0)])
    file.append([result(1)])
    file.remove()
    assert names(path) == []
    file.remove()
