"""Running whisper-digits over bundled clips: order, batches, long form, bad audio, interruption."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.evaluation import evaluate_model as module
from whisper_mla.evaluation.evaluate_model import evaluate_model, make_batches
from whisper_mla.evaluation.processes import Processes
from whisper_mla.evaluation.utterance_results import ResultsFile
from whisper_mla.evaluation.utterances import Utterance
from whisper_mla.transcription.audio import AudioError


def utterance(clips, name: str, language="en") -> Utterance:
    clip = clips[name]
    return Utterance(name, "clips", language, clip["text"], lambda: clip["samples"])


def broken(name: str = "broken") -> Utterance:
    def load():
        raise AudioError(f"{name}: not audio")

    return Utterance(name, "clips", "en", "one", load)


def transcripts(run) -> list:
    return [(result.index, result.id, result.hypothesis) for result in run.results]


@pytest.fixture(scope="module")
def five(clips) -> list[Utterance]:
    return [utterance(clips, f"clip0{number}") for number in (3, 0, 1, 7, 2)]


@pytest.mark.parametrize("kind", ["digits", "exact"])
def test_stock_and_converted_models(request, kind, processor, five):
    run = evaluate_model(request.getfixturevalue(kind), processor, five, batch_size=2)
    assert transcripts(run) == [(i, one.id, one.reference) for i, one in enumerate(five)]
    for result, one in zip(run.results, five, strict=True):
        assert result.audio_seconds == pytest.approx(len(one.load()) / 16_000)
        assert result.processing_seconds > 0
    assert run.peak_memory.bytes > 10_000_000 and "resident" in run.peak_memory.what


def test_long_audio_goes_through_long_form_beside_short(exact, processor, clips):
    both = [utterance(clips, "long"), utterance(clips, "clip00")]
    run = evaluate_model(exact, processor, both, batch_size=2)
    assert [result.hypothesis for result in run.results] == [one.reference for one in both]
    assert run.results[0].audio_seconds > 30


def test_unreadable_audio_is_skipped_and_named(exact, processor, clips):
    mixed = [utterance(clips, "clip00"), broken("x.wav"), utterance(clips, "clip01")]
    run = evaluate_model(exact, processor, mixed, batch_size=3)
    assert [result.error for result in run.results] == [None, "x.wav: not audio", None]
    assert [result.hypothesis for result in run.results] == [mixed[0].reference, None, mixed[2].reference]
    only = evaluate_model(exact, processor, [broken()], batch_size=3)
    assert [result.hypothesis for result in only.results] == [None]


def test_languages_are_told_to_the_model(exact, fresh, processor, clips, monkeypatch):
    model, told = fresh(exact), []
    original = model.generate
    monkeypatch.setattr(model, "generate", lambda *a, **k: told.append(k.get("language")) or original(*a, **k))
    spoken = [utterance(clips, "clip00", language) for language in ("en", None, "de", "en")]
    evaluate_model(model, processor, spoken, batch_size=2)
    assert told == [["<|en|>"] * 2, ["<|en|>"], ["<|de|>"]]  # None: as the generation config says


def test_a_language_the_model_does_not_have_stops_before_the_first_step(exact, fresh, processor, clips, monkeypatch):
    model = fresh(exact)
    monkeypatch.setattr(model, "generate", None)
    spoken = [utterance(clips, "clip00"), utterance(clips, "clip01", "xx")]
    with pytest.raises(ValueError, match="language='xx'"):
        evaluate_model(model, processor, spoken)


def test_progress_counts_utterances(exact, processor, five):
    seen = []
    evaluate_model(exact, processor, five, batch_size=2, progress=seen.append)
    assert seen == sorted(seen) and seen[-1] == 5 and {2, 4, 5} <= set(seen)


# batches


def fake(dataset: str, language: str | None, reference: str) -> Utterance:
    return Utterance(reference, dataset, language, reference, lambda: np.zeros(1))


def test_batches_are_of_one_dataset_and_language_long_first():
    utterances = [fake("a", "en", "1"), fake("a", "de", "1"), fake("b", "en", "1"), fake("a", "en", "333")]
    utterances += [fake("a", "en", "22"), fake("a", "en", "2")]
    assert make_batches(utterances, 2) == [[3, 4], [0, 5], [1], [2]]


def test_bad_batches():
    with pytest.raises(ValueError, match="batch_size=0"):
        make_batches([fake("a", "en", "1")], 0)
    with pytest.raises(ValueError, match="there is none"):
        make_batches([], 1)


def test_processes_share_batches_without_changing_them(exact, processor, five, tmp_path, monkeypatch):
    """Each of three processes in turn, exchanging nothing: together they make exactly the batches of one."""
    made = []
    monkeypatch.setattr(Processes, "broadcast", lambda self, value: value)
    monkeypatch.setattr(Processes, "gather", lambda self, value: made.append(value[0]) or [])
    monkeypatch.setattr(module, "_transcribe", lambda transcribers, utterances, batch, show: [tuple(batch)])
    for rank in (1, 2):
        assert evaluate_model(exact, processor, five, batch_size=2, processes=Processes(rank, 3)) is None
    with pytest.raises(KeyError):  # the first process needs what the others made
        evaluate_model(exact, processor, five, batch_size=2, processes=Processes(0, 3), progress=lambda done: None)
    assert sorted(batch for batches in made for batch in batches) == sorted(map(tuple, make_batches(five, 2)))


# interruption


class Interrupted(KeyboardInterrupt):
    pass


def test_an_interrupted_run_continues_and_gives_the_same(exact, fresh, processor, five, tmp_path, monkeypatch):
    path, settings = tmp_path / "results.jsonl", {"model": "exact"}
    whole = evaluate_model(exact, processor, five, batch_size=2)
    model, calls = fresh(exact), []
    original = model.generate

    def stop_at(count):
        def generate(**options):
            if len(calls) == count:
                raise Interrupted
            calls.append(len(options["encoder_outputs"].last_hidden_state))
            return original(**options)

        monkeypatch.setattr(model, "generate", generate)

    def run():
        return evaluate_model(model, processor, five, batch_size=2, results_file=ResultsFile(path, settings))

    stop_at(2)
    with pytest.raises(Interrupted):
        run()
    part = tmp_path / "results.part0.jsonl"
    assert [entry.name for entry in tmp_path.iterdir()] == [part.name]
    part.write_bytes(part.read_bytes()[:-5])  # killed while the second batch was written: it is made again as a whole
    stop_at(-1)
    continued = run()
    assert calls == [2, 2, 2, 1]
    assert transcripts(continued) == transcripts(whole)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]

    stop_at(len(calls))  # all is done: the model is not asked again
    again = run()
    assert again.results == continued.results and again.peak_memory is None


def test_results_of_other_settings_stop_before_the_first_step(exact, processor, five, tmp_path, monkeypatch):
    path = tmp_path / "results.jsonl"
    ResultsFile(path, {"num_beams": 1}).write([])
    monkeypatch.setattr(module, "_transcribe", None)
    with pytest.raises(ValueError, match="other settings"):
        evaluate_model(exact, processor, five, results_file=ResultsFile(path, {"num_beams": 2}))


def test_memory_of_a_gpu_is_what_it_allocated(monkeypatch):
    monkeypatch.setattr(module.torch.cuda, "max_memory_allocated", lambda device: 123)
    peak = module._peak_memory(SimpleNamespace(device=module.torch.device("cuda:1")))
    assert dataclasses.astuple(peak) == (123, "allocated on the GPU, weights included")


def test_a_low_rank_makes_errors_that_are_seen(digits, processor, clips):
    """A rank far too low: what is scored below must not be perfect."""
    model = WhisperMLAForConditionalGeneration.from_whisper(digits, kv_rank=4, cross_kv_rank=4)
    run = evaluate_model(model, processor, [utterance(clips, "clip00")])
    assert run.results[0].hypothesis != clips["clip00"]["text"]
