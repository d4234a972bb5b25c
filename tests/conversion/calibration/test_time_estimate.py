"""How long a calibration takes is said early, from times that were measured; here a clock of the test's own runs."""

from functools import partial

import pytest
import torch

from whisper_mla.conversion.calibration import calibrate as calibrating
from whisper_mla.conversion.calibration import gather_statistics as gathering
from whisper_mla.conversion.calibration import interrupted_gathering, time_estimate
from whisper_mla.conversion.calibration.time_estimate import TimeEstimate, in_words

TRANSCRIBING, GATHERING = 40, 3  # seconds: a batch, and an utterance in one pass


class Clock:
    """Seconds that pass only where a test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(autouse=True)
def shown(monkeypatch):
    monkeypatch.setattr(time_estimate, "is_progress_bar_enabled", lambda: True)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 s"),
        (18, "20 s"),
        (54, "55 s"),
        (57, "1 min"),
        (260, "4 min"),
        (3590, "1 h"),
        (3600 + 900, "1 h 20 min"),
        (7205, "2 h"),
    ],
)
def test_times_in_words(seconds, words):
    assert in_words(seconds) == words


def estimate(clock, lines: list[str], **options) -> tuple[TimeEstimate, list]:
    """Of 20 utterances, 10 of which go through the rest; 3 seconds for the one that is taken."""
    taken = []

    def rest(example):
        taken.append(example)
        clock.now += GATHERING

    return TimeEstimate(20, 3, rest, 10, clock=clock, say=lines.append, **options), taken


def test_it_is_said_once_after_the_first_batch(clock):
    lines: list[str] = []
    tell, taken = estimate(clock, lines)
    clock.now += 8
    tell.after_batch(["a", "b", "c", "d"], True, 16)
    clock.now += 500
    tell.after_batch(["e"], True, 0)
    assert lines == ["Calibration: 20 utterances, 3 passes, about 1 min on this machine"]  # 16 · 2 s and 10 · 3 s
    assert taken == ["a"]


def test_batches_that_were_transcribed_before_tell_nothing_of_the_others(clock):
    lines: list[str] = []
    tell, taken = estimate(clock, lines, goes_on=True)
    clock.now += 1
    tell.after_batch(["a", "b"], False, 4)
    assert not lines and not taken
    clock.now += 10
    tell.after_batch(["c", "d"], True, 2)
    assert lines == ["Calibration goes on: 20 utterances, 3 passes, about 40 s left on this machine"]
    assert taken == ["c"]


def test_nothing_is_said_of_a_moment_or_where_nobody_looks(clock, monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(time_estimate, "_WORTH_TELLING", 31)
    tell, taken = estimate(clock, lines)
    tell.after_batch(["a"], True, 0)
    assert not lines and taken == ["a"]
    monkeypatch.setattr(time_estimate, "_WORTH_TELLING", 30)
    tell, _ = estimate(clock, lines)
    tell.after_batch(["a"], True, 0)
    assert len(lines) == 1
    monkeypatch.setattr(time_estimate, "is_progress_bar_enabled", lambda: False)
    tell, taken = estimate(clock, lines)
    tell.after_batch(["a"], True, 0)
    assert len(lines) == 1 and not taken


# calibrate()


@pytest.fixture
def calibrate(digits, processor, clip_paths, clock, monkeypatch):
    """`calibrate` of ten clips, two of them held out, on the test's clock; what it says; and what it runs."""
    lines: list[str] = []
    runs = {"generate": 0, "forward": 0}
    forced_logits = gathering.forced_logits

    def slow_generate(encoder_outputs, **arguments):
        clock.now += TRANSCRIBING
        runs["generate"] += 1
        return torch.arange(5, 11).expand(len(encoder_outputs.last_hidden_state), -1)

    def slow_forward(model, batch, through_encoder):
        clock.now += GATHERING * len(batch["mask"])
        runs["forward"] += 1
        if runs["forward"] == runs.get("stop"):
            raise KeyboardInterrupt
        return forced_logits(model, batch, through_encoder)

    monkeypatch.setattr(digits, "generate", slow_generate, raising=True)
    monkeypatch.setattr(gathering, "forced_logits", slow_forward)
    monkeypatch.setattr(calibrating, "TimeEstimate", partial(TimeEstimate, clock=clock, say=lines.append))

    def run(**options):
        return calibrating.calibrate(
            digits, clip_paths[:10], processor, language="en", held_out=0.2, encoder=False, **options
        )

    return run, lines, runs


def test_calibrate_says_it(calibrate):
    """Two utterances of 5 s are left to transcribe; 8 go through two passes of 3 s."""
    run, lines, _ = calibrate
    run()
    assert lines == ["Calibration: 10 utterances, 3 passes, about 1 min on this machine"]
    run(gradients=False)
    assert lines[1:] == ["Calibration: 10 utterances, 2 passes, about 35 s on this machine"]


def test_a_calibration_that_goes_on_says_what_is_left_and_transcribes_nothing_again(calibrate, monkeypatch, tmp_path):
    monkeypatch.setattr(interrupted_gathering, "SECONDS_BETWEEN", 0)
    run, lines, runs = calibrate
    expected = run(gradients=False)
    runs.update(generate=0, forward=0, stop=3)  # one utterance to measure, then two batches of four
    with pytest.raises(KeyboardInterrupt):
        run(gradients=False, interrupted=tmp_path / "sums")
    assert runs["generate"] == 2
    runs.update(generate=0, forward=0, stop=None)
    found = run(gradients=False, interrupted=tmp_path / "sums")
    assert runs == {"generate": 0, "forward": 2, "stop": None}
    assert lines[-1] == "Calibration goes on: 10 utterances, 2 passes, about 10 s left on this machine"  # 4 · 3 s
    for place, wanted in expected.inputs.items():
        assert (found.inputs[place].covariance - wanted.covariance).norm() < 1e-9 * wanted.covariance.norm()
    assert not any(tmp_path.iterdir())


def test_an_interrupted_transcription_goes_on(calibrate, monkeypatch, tmp_path, digits):
    monkeypatch.setattr(interrupted_gathering, "SECONDS_BETWEEN", 0)
    run, lines, runs = calibrate
    generate = digits.generate

    def stop_at_the_second(**arguments):
        if runs["generate"] == 1:
            raise KeyboardInterrupt
        return generate(**arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(digits, "generate", stop_at_the_second)
        run(gradients=False, interrupted=tmp_path / "sums")
    assert runs["generate"] == 1
    run(gradients=False, interrupted=tmp_path / "sums")
    assert runs["generate"] == 2
    assert lines[-1] == "Calibration goes on: 10 utterances, 2 passes, about 25 s left on this machine"  # 8 · 3 s
