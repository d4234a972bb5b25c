"""Subtitles as independent packages read them."""

from datetime import timedelta
from io import StringIO

import pytest
import srt
import webvtt

from whisper_mla.transcription.channels import merge_channels
from whisper_mla.transcription.subtitles import SubtitleOptions, cues
from whisper_mla.transcription.transcript import Segment, Span, Transcript
from whisper_mla.transcription.transcript_files import render

TEXT = "And so, my fellow Americans: ask not what your country can do for you"
WORDS = [Span(0.5 * i, 0.5 * i + 0.5, word) for i, word in enumerate(TEXT.split())]
TRANSCRIPT = Transcript(TEXT, "en", [Segment(0.0, 3.0, "And so, my fellow Americans:"), Segment(3.0, 7.0, TEXT[29:])])
WITH_WORDS = Transcript(TEXT, "en", TRANSCRIPT.segments, WORDS)
STRANGE = Transcript("", None, [Segment(0.0, 1.0, "a\n\nb --> c <i> & {x}\\N"), Segment(1.0, 1.0, "one")])


def read_srt(transcript, **options):
    return list(srt.parse(render(transcript, "srt", subtitles=SubtitleOptions(**options)), ignore_errors=False))


def read_vtt(transcript, **options):
    text = render(transcript, "vtt", subtitles=SubtitleOptions(**options))
    return webvtt.from_buffer(StringIO(text)).captions


def all_words(found) -> str:
    return " ".join(" ".join(cue.lines) for cue in found)


@pytest.mark.parametrize("transcript", [TRANSCRIPT, WITH_WORDS])
@pytest.mark.parametrize("width", [None, 1, 10, 20])
@pytest.mark.parametrize("lines", [1, 2])
def test_lines_are_as_wide_and_as_many_as_asked_for(transcript, width, lines):
    options = SubtitleOptions(width, lines)
    found = cues(transcript, options)
    assert all_words(found) == TEXT
    for cue in found:
        assert all(cue.lines) and (width is None or len(cue.lines) <= lines)
        assert width is None or all(len(line) <= width or " " not in line for line in cue.lines)
    times = [time for cue in found for time in (cue.start, cue.end)]
    assert times == sorted(times) and times[0] == 0.0 and times[-1] == 7.0


def test_cues_of_words_begin_and_end_with_them():
    found = cues(WITH_WORDS, SubtitleOptions(20, 1))
    assert [cue.lines for cue in found][:2] == [("And so, my fellow",), ("Americans:",)]
    assert [(cue.start, cue.end) for cue in found][:2] == [(0.0, 2.0), (2.0, 2.5)]


def test_srt_and_vtt_are_valid():
    for transcript in (TRANSCRIPT, WITH_WORDS):
        subtitles, captions = read_srt(transcript, line_width=20), read_vtt(transcript, line_width=20)
        assert " ".join(one.content.replace("\n", " ") for one in subtitles) == TEXT
        assert [one.content for one in subtitles] == [one.text for one in captions]
        assert subtitles[-1].end == timedelta(seconds=7)
        assert [one.index for one in subtitles] == list(range(1, len(subtitles) + 1))


def test_no_text_breaks_a_cue():
    first, second = read_srt(STRANGE)
    assert first.content == "a b -> c <i> & {x}\\N" and second.content == "one"
    assert second.end > second.start
    assert [one.text for one in read_vtt(STRANGE)] == ["a b --&gt; c &lt;i&gt; &amp; {x}\\N", "one"]


def test_highlighted_words_in_vtt():
    text = render(WITH_WORDS, "vtt", subtitles=SubtitleOptions(20, 2, highlight_words=True))
    assert "00:00:00.500 --> 00:00:01.000\nAnd <u>so,</u> my fellow\nAmericans:\n" in text
    assert text.count("<u>") == len(WORDS) == len(read_vtt(WITH_WORDS, line_width=20, highlight_words=True))


def test_text_without_spaces_is_cut_at_the_width():
    text = "真っ昼間なのにキャンプの外れの電柱に電球がともっていた"
    words = [Span(0.2 * i, 0.2 * i + 0.2, letter) for i, letter in enumerate(text)]
    for transcript in (
        Transcript(text, "ja", [Segment(0.0, 5.4, text)]),
        Transcript(text, "ja", [Segment(0.0, 5.4, text)], words),
    ):
        found = cues(transcript, SubtitleOptions(10, 1))
        assert "".join(line for cue in found for line in cue.lines) == text
        assert max(len(line) for cue in found for line in cue.lines) == 10


def test_channels_are_told_apart():
    left = Transcript("one", "en", [Segment(1.0, 2.0, "one")], fallbacks=1, skipped_seconds=0.5)
    right = Transcript("two", "en", [Segment(0.0, 1.5, "two")], skipped_seconds=1.0)
    both = merge_channels([left, right])
    assert both.text == "Channel 1: one\nChannel 2: two"
    assert [(part.text, part.channel) for part in both.segments] == [("two", 2), ("one", 1)]
    assert (both.fallbacks, both.skipped_seconds) == (1, 1.5)
    assert [one.content for one in read_srt(both)] == ["Channel 2: two", "Channel 1: one"]
    assert "<v Channel 2>two\n" in render(both, "vtt")
    assert [one.voice for one in read_vtt(both)] == ["Channel 2", "Channel 1"]
    assert render(both, "csv") == "start,end,text,channel\n0.000,1.500,two,2\n1.000,2.000,one,1\n"


def test_tables():
    one = Transcript("a,\tb", "en", [Segment(0.5, 1.25, 'a, "b\tc"')])
    assert render(one, "tsv") == 'start\tend\ttext\n500\t1250\ta, "b c"\n'
    assert render(one, "csv") == 'start,end,text\n0.500,1.250,"a, ""b\tc"""\n'


@pytest.mark.parametrize("name", ["line_width", "lines"])
def test_numbers_below_one(name):
    with pytest.raises(ValueError, match=f"{name}=0"):
        SubtitleOptions(**{name: 0})
