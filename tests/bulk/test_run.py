"""Batches, memory that does not suffice, failures, a full disk, interruptions."""

import errno
import json
import os
import random
import signal

import numpy as np
import pytest
import torch

from tests.bulk.fakes import Stub, items, result_lines
from whisper_mla.bulk import batch_size as memory
from whisper_mla.bulk.read_ahead import batches, by_length, read_ahead
from whisper_mla.bulk.run import MOST_FAILURES_IN_A_ROW, ModelFailed, transcribe_many
from whisper_mla.bulk.sources import Item
from whisper_mla.bulk.summary import summarise
from whisper_mla.evaluation import result_lines as files
from whisper_mla.transcription.audio import AudioError


def run(stub, some, lines, **options):
    notes = []
    progress = transcribe_many(lambda language: stub, some, lines, note=notes.append, **options)
    return progress, notes


def kept(lines) -> dict[str, dict]:
    return {name: json.loads(line) for name, line in lines.collect_lines().items()}


@pytest.fixture
def lines(tmp_path):
    found = result_lines(tmp_path)
    found.write_settings()
    return found


def test_batches_of_like_length_long_ones_first(lines):
    stub = Stub()
    progress, notes = run(stub, items(5, 9, 1, 8, 7), lines, batch_size=2)
    assert stub.batches == [[9, 8], [7, 5], [1]] and notes == []
    assert (progress.files, progress.failed, progress.batch_size) == (5, 0, 2)
    assert progress.audio_seconds == pytest.approx(30 / 16_000) and progress.seconds > 0
    assert kept(lines)["3-8"] | {"seconds": 0} == {
        "audio": "3-8",
        "seconds": 0,
        "text": "8 samples",
        "language": None,
        "segments": [],
        "words": [],
        "fallbacks": 0,
        "skipped_seconds": 0.0,
    }


def test_a_stream_is_sorted_in_pools(lines):
    stub = Stub()
    run(stub, iter(items(1, 2, 3, 4, 5, 6)), lines, batch_size=2, pool=4)
    assert stub.batches == [[4, 3], [2, 1], [6, 5]]


def test_languages_are_not_mixed(lines):
    some = [Item(str(n), lambda: np.zeros(4, np.float32), language=code) for n, code in enumerate("abab")]
    asked = []
    transcribe_many(lambda language: asked.append(language) or Stub(), some, lines, batch_size=4)
    assert asked == ["a", "b"]


def test_the_batch_is_halved_where_it_does_not_fit_and_nothing_is_done_twice(lines):
    stub = Stub(room=30)
    progress, notes = run(stub, items(*[10] * 10), lines, batch_size=8)
    assert [len(batch) for batch in stub.batches] == [8, 4, 2, 2, 4, 2, 2, 2]
    assert progress.batch_size == 2 and progress.failed == 0
    assert notes[0] == "Out of memory with 8 recordings at once; going on with 4."
    assert notes[-1] == "Out of memory with 4 recordings at once; going on with 2."
    assert [row["text"] for row in kept(lines).values()] == ["10 samples"] * 10


def test_what_does_not_fit_alone_is_marked_and_the_batch_stays_large(lines):
    stub = Stub(room=40)
    progress, notes = run(stub, items(50, 10, 10, 10, 9, 9, 9, 9), lines, batch_size=4)
    found = kept(lines)
    assert "does not fit into memory even alone" in found["0-50"]["error"] and "DefaultCPU" in found["0-50"]["error"]
    assert sum("error" in row for row in found.values()) == 1 and progress.failed == 1
    assert stub.batches[-1] == [9, 9, 9, 9] and progress.batch_size == 4
    assert any("even alone" in note for note in notes)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("x"),
        RuntimeError("CUDA out of memory. Tried"),
        RuntimeError("MPS backend out of memory"),
    ],
)
def test_what_says_that_memory_was_short(error):
    assert memory.is_out_of_memory(error)
    assert not memory.is_out_of_memory(RuntimeError("size mismatch"))


def test_a_recording_that_the_model_fails_on_costs_only_itself(lines):
    stub = Stub(bad=[7])
    progress, notes = run(stub, items(9, 8, 7, 6), lines, batch_size=4)
    found = kept(lines)
    assert found["2-7"]["error"] == "2-7: the model failed (IndexError: index out of range in self)"
    assert progress.failed == 1 and progress.batch_size == 4 and notes == []
    assert sum("text" in row for row in found.values()) == 3


def test_a_model_that_always_fails_ends_the_run(lines):
    stub = Stub(bad=[7])
    with pytest.raises(ModelFailed, match=r"failed on 16 recordings in a row.*IndexError.*--retry-failed"):
        run(stub, items(*[7] * 40), lines, batch_size=4)
    assert len(kept(lines)) == MOST_FAILURES_IN_A_ROW - 4


def test_unreadable_audio_is_recorded(lines):
    def broken():
        raise AudioError("x.wav: holds no audio.")

    def odd():
        raise KeyError("column")

    some = [*items(4), Item("x.wav", broken), Item("y", odd)]
    progress, _ = run(Stub(), some, lines, batch_size=4)
    found = kept(lines)
    assert found["x.wav"] == {"audio": "x.wav", "error": "x.wav: holds no audio."}
    assert found["y"]["error"] == "y: cannot be read (KeyError: 'column')."
    summary = summarise(lines.collect_lines().values(), [progress, progress])
    assert [failure.audio for failure in summary.failures] == ["x.wav", "y"]
    assert (summary.files, summary.new_files, summary.processes) == (3, 6, 2)
    assert json.loads(summary.as_json())["files_per_second"] == summary.files_per_second > 0


def test_what_is_done_is_not_done_again(lines):
    run(Stub(), items(1, 2, 3), lines)
    stub = Stub()
    run(stub, items(1, 2, 3, 4), lines, done=lines.collect_lines())
    assert stub.batches == [[4]] and len(kept(lines)) == 4


@pytest.mark.parametrize("option", ["batch_size", "workers"])
def test_senseless_numbers_are_refused(lines, option):
    with pytest.raises(ValueError, match=f"{option}=0: expected at least 1"):
        run(Stub(), items(1), lines, **{option: 0})


# reading ahead


def test_audio_is_read_ahead_but_not_all_of_it():
    read = []

    def item(number):
        return Item(str(number), lambda: read.append(number) or np.zeros(1, np.float32))

    stream = read_ahead(((item(number), 10.0) for number in range(100)), workers=1, seconds_ahead=35.0)
    first = next(stream)
    assert first[0].id == "0"
    stream.close()
    assert 1 <= len(read) <= 5  # three or four ahead of the first; the others were never begun
    assert [one.id for one, _ in read_ahead([(item(0), 1e6), (item(1), 1e6)], 2, 1.0)] == ["0", "1"]


def test_headers_that_tell_nothing_do_not_stop_the_sorting():
    unknown = Item("u", lambda: np.zeros(1, np.float32))
    assert [one.id for one, _ in by_length([*items(16_000, 1_600_000), unknown], 1)] == ["1-1600000", "u", "0-16000"]


def test_long_audio_makes_small_batches():
    read = [(item, np.zeros(16_000)) for item in items(*[1] * 5)]
    assert [len(batch) for batch in batches(read, lambda: 4, seconds_at_once=2.5)] == [2, 2, 1]


# memory


def test_the_batch_size_follows_free_memory(exact, monkeypatch):
    each = memory.bytes_of_a_stream(exact)
    assert memory.bytes_of_a_stream(exact, 5) > each > 1_000_000
    for free, expected in {0: 1, 7 * each: 3, 10**15: memory.MOST_ON_CPU}.items():
        monkeypatch.setattr(memory, "free_bytes", lambda device, free=free: free)
        assert memory.fitting_batch_size(exact) == expected


def test_processes_of_one_machine_share_its_memory(monkeypatch):
    whole = memory.free_bytes(torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory.free_bytes(torch.device("cpu")) < whole / 2


# the disk


def test_a_full_disk_stops_the_run_with_nothing_torn(lines, monkeypatch):
    """Room for the first batch and part of the second, then for all."""
    run_out, write, room = [], os.write, [700]

    def on_a_full_disk(file, data):
        data = bytes(data)[: room[0]]
        if not data:
            run_out.append(True)
            raise OSError(errno.ENOSPC, "No space left on device")
        room[0] -= len(data)
        return write(file, data)

    monkeypatch.setattr(files.os, "write", on_a_full_disk)
    with pytest.raises(OSError, match=r"No space left.*is whole: free some space and start again") as raised:
        run(Stub(), items(*range(1, 9)), lines, batch_size=4)
    assert run_out and raised.value.errno == errno.ENOSPC
    part = lines.path.with_name("r.part0.jsonl").read_bytes()
    assert part.count(b"\n") == 4 and part.endswith(b"\n")
    room[0] = 10**6
    stub = Stub()
    run(stub, items(*range(1, 9)), lines, done=lines.collect_lines(), batch_size=4)
    assert stub.batches == [[4, 3, 2, 1]] and len(kept(lines)) == 8


@pytest.mark.kills
def test_killed_at_any_byte_and_started_again(tmp_path):
    """A process that dies within a write, 40 times over: in the end there is every recording, and each once."""
    random.seed(0)
    lines = result_lines(tmp_path)
    lines.write_settings()
    everything, dead = items(*range(1, 30)), 0
    for _ in range(40):
        left = random.randrange(1, 900)
        done = set(lines.collect_lines())
        child = os.fork()
        if child == 0:
            write = os.write

            def dying(file, data, write=write, left=[left]):  # noqa: B006
                count = write(file, bytes(data)[: left[0]])
                left[0] -= count
                if left[0] <= 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return count

            files.os.write = dying
            run(Stub(), everything, lines, done=done, batch_size=3)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        dead += os.WIFSIGNALED(status)
    assert dead > 5
    assert sorted(kept(lines)) == sorted(item.id for item in everything)
    merged = [json.loads(line)["audio"] for line in lines.path.read_bytes().splitlines()]
    assert sorted(merged) == sorted(item.id for item in everything)


# settings beside the results


def test_results_of_other_settings_are_never_mixed(lines, tmp_path):
    run(Stub(), items(1), lines)
    other = result_lines(tmp_path)
    other.settings = {"a": 2}
    with pytest.raises(ValueError, match=r"other settings \(a\).*--overwrite"):
        other.collect_lines()
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"settings\.json, which says how its results were made, is not"):
        lines.collect_lines()
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(ValueError, match="not a file of settings"):
        lines.collect_lines()
    lines.remove()
    assert lines.collect_lines() == {} and list(tmp_path.iterdir()) == []


def test_file_names_that_are_no_text(lines):
    name = os.fsdecode(b"caf\xe9.wav")
    lines.append_rows([{"audio": name}, {"audio": "é"}])
    assert set(lines.collect_lines()) == {name, "é"}
    assert b'"caf\\udce9.wav"' in lines.path.read_bytes() and '"é"'.encode() in lines.path.read_bytes()
