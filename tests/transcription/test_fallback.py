import pytest

from whisper_mla.transcription.fallback import (
    NO_FALLBACK,
    FallbackOptions,
    Quality,
    best,
    compression_ratio,
    is_silence,
    needs_fallback,
)

OPTIONS = FallbackOptions()


def quality(avg_logprob=-0.3, ratio=1.5, no_speech=0.1, temperature=0.0):
    return Quality(temperature, avg_logprob, ratio, no_speech)


def test_the_thresholds_are_openais():
    assert OPTIONS.temperatures == (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    assert (OPTIONS.compression_ratio_threshold, OPTIONS.logprob_threshold, OPTIONS.no_speech_threshold) == (
        2.4,
        -1.0,
        0.6,
    )


def test_repetition_and_doubt_lead_to_another_temperature():
    assert not needs_fallback(quality(), OPTIONS)
    assert needs_fallback(quality(ratio=2.41), OPTIONS)
    assert needs_fallback(quality(avg_logprob=-1.01), OPTIONS)
    assert not needs_fallback(quality(avg_logprob=-9, ratio=99), NO_FALLBACK)


def test_silence_takes_both_signs():
    assert is_silence(quality(avg_logprob=-1.1, no_speech=0.61), OPTIONS)
    assert not is_silence(quality(avg_logprob=-0.9, no_speech=0.61), OPTIONS)
    assert not is_silence(quality(avg_logprob=-1.1, no_speech=0.59), OPTIONS)
    assert not is_silence(quality(avg_logprob=-9, no_speech=1.0), NO_FALLBACK)
    assert not needs_fallback(quality(avg_logprob=-1.1, ratio=9, no_speech=0.61), OPTIONS)


def test_loops_compress_well():
    assert compression_ratio("Wh-" * 100) > 2.4 > compression_ratio("the quick brown fox jumps over the lazy dog")
    assert compression_ratio("") == 0


def test_the_likeliest_that_does_not_repeat_is_kept():
    tried = [quality(-0.1, 9.0), quality(-1.4, 1.2), quality(-1.2, 1.3), quality(-3.0, 1.1)]
    assert best(tried, OPTIONS) == 2
    assert best([quality(-0.1, 9.0), quality(-0.2, 5.0), quality(-0.1, 7.0)], OPTIONS) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperatures": ()}, "temperatures"),
        ({"temperatures": (0.4, 0.2)}, "rising"),
        ({"temperatures": (-0.1,)}, "at least 0"),
        ({"compression_ratio_threshold": 0}, "compression_ratio_threshold=0"),
        ({"no_speech_threshold": 1.5}, "no_speech_threshold=1.5"),
    ],
)
def test_values_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        FallbackOptions(**arguments)
