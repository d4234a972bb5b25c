"""The bootstrap against a brute-force one and known limits."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_mla.evaluation import intervals
from whisper_mla.evaluation.intervals import bootstrap_interval, compare_paired

UTTERANCES = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 9)), min_size=1, max_size=40)


@settings(max_examples=50)
@given(UTTERANCES)
def test_the_interval_contains_the_estimate(utterances):
    errors, lengths = zip(*utterances, strict=True)
    interval = bootstrap_interval(errors, lengths, resamples=500)
    assert interval.estimate == sum(errors) / sum(lengths)
    assert interval.low <= interval.estimate <= interval.high


def test_against_all_possible_draws():
    """With three utterances there are 27 equally likely draws: the shares of the bootstrap must be theirs."""
    errors, lengths = np.array([0, 1, 3]), np.array([2, 4, 3])
    rates = [errors[list(draw)].sum() / lengths[list(draw)].sum() for draw in itertools.product(range(3), repeat=3)]
    for confidence in (0.5, 0.8, 0.9):
        interval = bootstrap_interval(errors, lengths, confidence=confidence, resamples=40_000)
        for bound, share in ((interval.low, (1 - confidence) / 2), (interval.high, (1 + confidence) / 2)):
            assert np.mean(np.array(rates) < bound - 1e-12) <= share + 0.01
            assert np.mean(np.array(rates) <= bound + 1e-12) >= share - 0.01


def test_width_follows_the_normal_limit():
    """Many alike utterances with one word each: the standard error is that of a proportion."""
    errors = [1] * 100 + [0] * 900
    interval = bootstrap_interval(errors, [1] * 1000)
    half_width = 1.96 * (0.1 * 0.9 / 1000) ** 0.5
    assert interval.low == pytest.approx(0.1 - half_width, abs=0.002)
    assert interval.high == pytest.approx(0.1 + half_width, abs=0.002)


def test_seed_and_steps(monkeypatch):
    arguments = ([0, 2, 1, 4], [3, 5, 4, 6])
    first = bootstrap_interval(*arguments, resamples=300, seed=1)
    assert first == bootstrap_interval(*arguments, resamples=300, seed=1)
    assert first != bootstrap_interval(*arguments, resamples=300, seed=2)
    monkeypatch.setattr(intervals, "_VALUES_AT_ONCE", 8)  # two draws at a time
    assert first == bootstrap_interval(*arguments, resamples=300, seed=1)


def test_confidence_widens():
    arguments = ([0, 2, 1, 4, 0, 0, 1], [3, 5, 4, 6, 2, 2, 2])
    narrow, wide = (bootstrap_interval(*arguments, confidence=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_resamples_without_a_reference_word_are_left_out():
    interval = bootstrap_interval([1, 1], [0, 2])
    assert interval.estimate == 1.0 and np.isfinite([interval.low, interval.high]).all()


@settings(max_examples=50)
@given(UTTERANCES)
def test_a_model_against_itself_differs_by_exactly_nothing(utterances):
    errors, lengths = zip(*utterances, strict=True)
    paired = compare_paired(errors, errors, lengths, resamples=200)
    assert (paired.difference, paired.low, paired.high) == (0.0, 0.0, 0.0)
    assert (paired.p_value, paired.probability_of_improvement) == (1.0, 0.5)
    assert (paired.better, paired.worse, paired.equal) == (0, 0, len(errors))


def test_paired_sees_what_separate_intervals_hide():
    """The second model makes one error less on every third utterance, between utterances that differ much more."""
    first = [1 + (7 * i) % 11 for i in range(90)]
    second = [errors - (i % 3 == 0) for i, errors in enumerate(first)]
    lengths = [20] * 90
    one, other = bootstrap_interval(first, lengths), bootstrap_interval(second, lengths)
    assert other.high > one.low  # they overlap
    paired = compare_paired(first, second, lengths)
    assert paired.difference == pytest.approx(-30 / 1800)
    assert paired.low < paired.difference < paired.high < 0
    assert (paired.p_value, paired.probability_of_improvement) == (0.0, 1.0)
    assert (paired.better, paired.worse, paired.equal) == (30, 0, 60)


def test_paired_is_antisymmetric():
    first, second, lengths = [3, 0, 2, 5, 1], [2, 1, 2, 2, 0], [5, 6, 7, 8, 9]
    one, other = compare_paired(first, second, lengths), compare_paired(second, first, lengths)
    assert one.difference == -other.difference < 0
    assert one.low == pytest.approx(-other.high) and one.high == pytest.approx(-other.low)
    assert one.p_value == other.p_value
    assert one.probability_of_improvement == pytest.approx(1 - other.probability_of_improvement)
    assert (one.better, one.worse) == (other.worse, other.better)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], []), "no reference token"),
        (([1], [0]), "no reference token"),
        (([1, 2], [1]), "lengths: 1 values"),
        (([-1], [1]), "errors: holds a negative"),
        (([1], [1], 1.0), "confidence=1.0"),
        (([1], [1], 0.9, 0), "resamples=0"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(*arguments)


def test_paired_errors():
    with pytest.raises(ValueError, match="second: 1 values"):
        compare_paired([1, 2], [1], [1, 1])
    with pytest.raises(ValueError, match="no reference token"):
        compare_paired([1], [1], [0])
