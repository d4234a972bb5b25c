"""The teacher's transcripts: right, made once, and kept through kills."""

import pytest
import torch
from datasets import Dataset

from tests.training.conftest import speech, tiny_whisper
from whisper_mla.training import transcripts
from whisper_mla.training.labels import LabelMaker
from whisper_mla.training.transcripts import TranscribedSpeech, teacher_transcripts, transcribe_examples


def test_a_trained_teacher_transcribes(digits, processor, clips):
    examples = [
        {"audio": {"array": clips[name]["samples"], "sampling_rate": 16_000}, "language": "en"}
        for name in ("clip00", "clip03")
    ]
    texts = transcribe_examples(digits, processor, examples, LabelMaker(processor.tokenizer))
    assert texts == [clips[name]["text"] for name in ("clip00", "clip03")]


@pytest.fixture
def fake(monkeypatch):
    """Counts what is transcribed; the transcript is the number of the example's samples."""
    seen = []

    def transcribe(model, processor, examples, label_maker):
        seen.extend(len(example["audio"]["array"]) for example in examples)
        return [str(len(example["audio"]["array"])) for example in examples]

    monkeypatch.setattr(transcripts, "transcribe_examples", transcribe)
    return seen


@pytest.fixture
def data() -> Dataset:
    return Dataset.from_list([speech(1, seconds=0.1 * (i + 1))[0] for i in range(7)])


def run(data, label_maker, cache, teacher=None, **share):
    return teacher_transcripts(teacher or tiny_whisper(), None, data, label_maker, cache, batch_size=2, **share)


def test_made_once(fake, data, label_maker, tmp_path):
    first = run(data, label_maker, tmp_path / "cache")
    assert first == [str(1600 * (i + 1)) for i in range(7)]
    assert run(data, label_maker, tmp_path / "cache") == first
    assert len(fake) == 7


def test_goes_on_after_a_kill_that_tore_a_line(fake, data, label_maker, tmp_path):
    whole = run(data, label_maker, tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob("transcripts-*.jsonl")
    content = file.read_text()
    file.write_text(content[: content.index('{"index": 4') + 14])  # within the fifth transcript
    del fake[:]
    assert run(data, label_maker, tmp_path / "cache") == whole
    assert len(fake) == 3
    assert run(data, label_maker, tmp_path / "cache") == whole
    assert len(fake) == 3


def test_processes_share_the_work(fake, data, label_maker, tmp_path):
    first = run(data, label_maker, tmp_path / "cache", rank=0, world_size=2)
    assert [bool(text) for text in first] == [True, False] * 3 + [True]
    both = run(data, label_maker, tmp_path / "cache", rank=1, world_size=2)
    assert both == [str(1600 * (i + 1)) for i in range(7)]
    assert len(fake) == 7


def test_another_teacher_is_refused(fake, data, label_maker, tmp_path):
    run(data, label_maker, tmp_path / "cache")
    with pytest.raises(ValueError, match="holds transcripts of another teacher"):
        run(data, label_maker, tmp_path / "cache", teacher=tiny_whisper(seed=1))
    with pytest.raises(ValueError, match="holds transcripts of another teacher"):
        run(data.select(range(3)), label_maker, tmp_path / "cache")


def test_empty_transcripts_are_left_out_with_a_notice(data, monkeypatch):
    said = []
    monkeypatch.setattr(transcripts.logger, "warning", said.append)
    told = TranscribedSpeech(data, ["a", "", "c", "", "e", "f", "g"])
    assert [told[i]["text"] for i in range(len(told))] == ["a", "c", "e", "f", "g"]
    assert len(told[1]["audio"]["array"]) == 4800
    assert said == ["2 of 7 examples left out: the teacher heard nothing in them."]
    with pytest.raises(ValueError, match="the teacher heard nothing in any example"):
        TranscribedSpeech(data, [""] * 7)


def test_transcription_of_languages_side_by_side(tiny_processor, label_maker):
    teacher = tiny_whisper()
    examples = [*speech(1, language="de"), *speech(1, language="en")]
    both = transcribe_examples(teacher, tiny_processor, examples, label_maker)
    with torch.no_grad():
        assert both == [transcribe_examples(teacher, tiny_processor, [e], label_maker)[0] for e in examples]
