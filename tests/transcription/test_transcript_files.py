import os
from pathlib import Path

import pytest

from whisper_mla.hub.whole_file import write_whole
from whisper_mla.transcription.transcript import Span, Transcript
from whisper_mla.transcription.transcript_files import output_names, render

TRANSCRIPT = Transcript(
    "one two, three",
    "en",
    [Span(0.0, 1.5, "one two,"), Span(3661.25, 3662.0, "three")],
)


def test_srt_and_vtt_times():
    assert render(TRANSCRIPT, "srt") == (
        "1\n00:00:00,000 --> 00:00:01,500\none two,\n\n2\n01:01:01,250 --> 01:01:02,000\nthree\n"
    )
    assert "01:01:01.250 --> 01:01:02.000\nthree" in render(TRANSCRIPT, "vtt")


def test_words_take_the_place_of_segments():
    words = Transcript("one", "en", TRANSCRIPT.segments, [Span(0.1, 0.4, "one")])
    assert render(words, "srt") == "1\n00:00:00,100 --> 00:00:00,400\none\n"


def test_text_has_times_where_there_are_any():
    assert render(Transcript("one two, three"), "text") == "one two, three\n"
    assert render(TRANSCRIPT, "text") == (
        "[00:00:00.000 --> 00:00:01.500] one two,\n[01:01:01.250 --> 01:01:02.000] three\n"
    )


def test_a_cue_has_some_length():
    instant = Transcript("one", "en", [Span(8.92, 8.92, "one")])
    assert "00:00:08.920 --> 00:00:08.921\none" in render(instant, "vtt")


def test_text_is_kept_whatever_it_holds():
    strange = Transcript("", None, [Span(0, 1, "{laughs} a < b & c \\N")])
    assert render(strange, "srt").endswith("\n{laughs} a < b & c \\N\n")
    assert render(strange, "vtt").endswith("\n{laughs} a &lt; b &amp; c \\N\n")


@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o022, 0o644)])
def test_permissions_follow_the_umask(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        write_whole(tmp_path / "a.txt", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == mode


def test_names_are_stems_unless_two_are_the_same():
    assert output_names([Path("a/x.wav"), Path("b/y.mp3")], "text") == ["x.txt", "y.txt"]
    assert output_names([Path("a/x.wav"), Path("b/x.mp3")], "srt") == ["x.wav.srt", "x.mp3.srt"]
    with pytest.raises(ValueError, match=r"two are named x\.wav"):
        output_names([Path("a/x.wav"), Path("b/x.wav")], "json")


def test_a_failure_keeps_the_old_file(tmp_path, monkeypatch):
    write_whole(tmp_path / "a.txt", "old")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr("whisper_mla.hub.whole_file.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_whole(tmp_path / "a.txt", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    write_whole(tmp_path / "a.txt", "häuser\n")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "häuser\n"
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "a.txt", "\ud800")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "häuser\n"
