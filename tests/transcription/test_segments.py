"""Where a window is cut, on made-up tokens: below 1000 text, from 1000 on times of 0.02 s."""

import pytest

from whisper_mla.transcription.segments import split_window
from whisper_mla.transcription.timestamp_tokens import TimestampTokens

TIMES = TimestampTokens(1000)


def mark(seconds: float) -> int:
    return 1000 + round(seconds / 0.02)


def split(tokens, seconds=30.0):
    ranges, advance = split_window(tokens, TIMES, seconds)
    return [(round(part.start, 2), round(part.end, 2), part.first, part.last) for part in ranges], advance


def test_pairs_of_marks_are_where_segments_meet():
    tokens = [mark(0), 1, 2, mark(2), mark(2.5), 3, mark(4)]
    assert split(tokens) == ([(0.0, 2.0, 0, 4), (2.5, 4.0, 4, 7)], None)


def test_what_is_unfinished_is_left_to_the_next_window():
    tokens = [mark(0), 1, mark(20), mark(20), 2, 3]
    assert split(tokens) == ([(0.0, 20.0, 0, 3)], pytest.approx(20.0))
    assert split([mark(0), 1, mark(20), mark(20)]) == ([(0.0, 20.0, 0, 3)], pytest.approx(20.0))


def test_without_a_pair_the_window_is_one_segment():
    assert split([mark(0), 1, mark(7)]) == ([(0.0, 7.0, 0, 3)], None)
    assert split([mark(0), 1, 2]) == ([(0.0, 30.0, 0, 3)], None)
    assert split([]) == ([(0.0, 30.0, 0, 0)], None)
    ranges, advance = split_window([1, 2], None, 12.0)
    assert (ranges[0].start, ranges[0].end, advance) == (0.0, 12.0, None)


def test_no_segment_reaches_beyond_the_audio():
    tokens = [mark(0), 1, mark(8), mark(8), 2, mark(30)]
    assert split(tokens, 8.2)[0] == [(0.0, 8.0, 0, 3), (8.0, 8.2, 3, 6)]
    assert split([mark(9), 1, mark(10)], 8.2)[0] == [(0.0, 8.2, 0, 3)]
    late = [mark(0), 1, mark(8.2), mark(9), 2, mark(10)]
    assert split(late, 8.2)[0][1] == (8.18, 8.2, 3, 6)


def test_a_segment_of_one_frame_of_audio():
    assert split([mark(0), 1, mark(1)], 0.01)[0] == [(0.0, 0.01, 0, 3)]
