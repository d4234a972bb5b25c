"""Scores by dataset and language, from transcripts made up here."""

from functools import partial

import pytest

from whisper_mla.evaluation.normalizers import normalizer_for
from whisper_mla.evaluation.scores import compare_models, score_utterances, summarise, summarise_groups
from whisper_mla.evaluation.utterance_results import UtteranceResult

BASIC = partial(normalizer_for, choice="basic")
REFERENCES = [("a", "en", "One, two three four."), ("a", "de", "eins zwei"), ("b", "en", "five"), ("b", "zh", "你好")]


def results(*hypotheses: str | None) -> list[UtteranceResult]:
    return [
        UtteranceResult(
            i, f"{i}.wav", dataset, language, reference, hypothesis, 2.0, 0.5, None if hypothesis else "bad"
        )
        for i, ((dataset, language, reference), hypothesis) in enumerate(zip(REFERENCES, hypotheses, strict=False))
    ]


def test_normalised_before_counting():
    scored = score_utterances(results("one two three", "Eins, zwei!", "five six seven", "你 坏"), BASIC)
    assert [one.words.errors for one in scored] == [1, 0, 2, 1]
    assert [one.characters.errors for one in scored] == [5, 0, 10, 1]
    assert [one.hallucination.is_suspect for one in scored] == [False, False, True, False]


def test_summary_hand_counted():
    summary = summarise(score_utterances(results("one two three", "drei zwei", "five six seven"), BASIC), resamples=50)
    assert (summary["utterances"], summary["words"], summary["wer"]) == (3, 7, 4 / 7)
    assert [summary[kind] for kind in ("substitutions", "deletions", "insertions")] == [1, 1, 2]
    assert summary["length_ratio"] == 8 / 7
    assert (summary["too_long"], summary["looping"], summary["suspect"]) == (1, 0, 1)
    assert (summary["audio_seconds"], summary["real_time_factor"]) == (6.0, 0.25)
    low, high = summary["wer_interval"]
    assert low <= summary["wer"] <= high


def test_groups():
    scored = score_utterances(results("one two three", "eins zwei", "six", "你好"), BASIC)
    groups = summarise_groups(scored, resamples=50)
    assert groups["overall"]["wer"] == 2 / 9
    assert {name: score["wer"] for name, score in groups["datasets"].items()} == {"a": 1 / 6, "b": 1 / 3}
    assert {code: score["wer"] for code, score in groups["languages"].items()} == {"en": 2 / 5, "de": 0, "zh": 0}
    assert {code: score["wer"] for code, score in groups["datasets"]["b"]["languages"].items()} == {"en": 1, "zh": 0}


def test_unreadable_utterances_are_left_out():
    assert len(score_utterances(results("one", None, "five"), BASIC)) == 2
    with pytest.raises(ValueError, match="None of the 2 audio files could be read; the first: bad"):
        score_utterances(results(None, None), BASIC)


def test_a_reference_that_normalises_to_nothing():
    result = UtteranceResult(0, "x", "a", "en", "[noise]", "you", 1.0, 1.0)
    summary = summarise(score_utterances([result], BASIC))
    assert (summary["wer"], summary["wer_interval"], summary["insertions"], summary["suspect"]) == (None, None, 1, 1)


def test_comparison():
    first = score_utterances(results("one two three four", "eins", "six", "你好"), BASIC)
    second = score_utterances(results("one two three four", "eins zwei", "five", "你"), BASIC)
    compared = compare_models(first, second, resamples=100)
    assert compared["overall"]["difference"] == pytest.approx((1 - 2) / 9)
    assert (compared["overall"]["better"], compared["overall"]["worse"]) == (2, 1)
    assert (compared["overall"]["same_transcripts"], compared["overall"]["utterances"]) == (1, 4)
    assert compared["datasets"]["a"]["difference"] == pytest.approx(-1 / 6)
    assert compared["datasets"]["b"]["difference"] == 0
    same = compare_models(first, first, resamples=100)["overall"]
    assert (same["difference"], same["low"], same["high"], same["p_value"]) == (0, 0, 0, 1)
    assert same["same_transcripts"] == 4


def test_comparison_of_what_both_could_read():
    first = score_utterances(results("one two three four", None, "five"), BASIC)
    second = score_utterances(results("one two three four", "eins", "six"), BASIC)
    assert compare_models(first, second, resamples=10)["overall"]["utterances"] == 2
    other = [UtteranceResult(0, "other.wav", "a", "en", "one two three four", "one", 1.0, 1.0)]
    with pytest.raises(ValueError, match="not evaluated on the same"):
        compare_models(first, score_utterances(other, BASIC))
    with pytest.raises(ValueError, match="no utterance in common"):
        compare_models(first[:1], second[1:])
