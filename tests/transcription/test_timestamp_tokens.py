from types import SimpleNamespace

import pytest

from whisper_mla.transcription.timestamp_tokens import timestamp_tokens


def test_they_are_the_1501_ids_after_no_timestamps():
    times = timestamp_tokens(SimpleNamespace(no_timestamps_token_id=50363))
    assert [50363 in times, 50364 in times, 51864 in times, 51865 in times] == [False, True, True, False]
    assert (times.seconds(50364), times.seconds(51864)) == (0.0, pytest.approx(30.0))


def test_a_model_may_have_none():
    assert timestamp_tokens(SimpleNamespace()) is None
