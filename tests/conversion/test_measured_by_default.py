"""No lossy conversion without a word on what it costs: calibrated and measured on the speech that comes along."""

import shutil

import pytest
import soundfile

from tests.conftest import ASSETS, random_whisper
from whisper_mla.conversion import ConversionError, from_whisper
from whisper_mla.conversion.calibration import bundled_speech
from whisper_mla.conversion.calibration.clips import read_clips
from whisper_mla.conversion.calibration.make_examples import make_examples
from whisper_mla.conversion.calibration.word_changes import WordChanges, count_word_changes
from whisper_mla.conversion.ranks.quality import HeldOut, Quality, refuse_changes


@pytest.fixture
def digits_bundled(monkeypatch, tmp_path):
    """Speech that whisper-digits understands, in place of what comes along."""
    rows = (ASSETS / "clips" / "metadata.csv").read_text().splitlines()
    names = ("file_name", "clip00", "clip03", "clip04", "clip07")
    (tmp_path / "metadata.csv").write_text("\n".join(row for row in rows if row.startswith(names)) + "\n")
    for name in names[1:]:
        shutil.copy(next((ASSETS / "clips").glob(f"{name}_*")), tmp_path)
    monkeypatch.setattr(bundled_speech, "SPEECH", tmp_path)


@pytest.fixture
def warnings(monkeypatch):
    """What is warned of while planning and while reading the bundled speech."""
    from whisper_mla.conversion import plan

    told = []
    for module in (plan, bundled_speech):
        monkeypatch.setattr(module.logger, "warning", told.append)
    return told


def test_what_comes_along():
    """One to two and a half minutes, below 3 MB, each with a transcript, and credited."""
    clips = read_clips(bundled_speech.SPEECH)
    files = sorted(bundled_speech.SPEECH.glob("*.flac"))
    assert len(clips) == len(files) == 12 and all(clip.text for clip in clips)
    assert 60 < sum(len(clip.samples) for clip in clips) / 16_000 < 150
    assert sum(file.stat().st_size for file in files) < 3e6
    assert all(soundfile.info(file).samplerate == 16_000 for file in files)
    assert len({file.name.split("-")[0] for file in files}) == 7
    credit = (ASSETS / "README.md").read_text()
    assert "LibriSpeech" in credit and "CC BY 4.0" in credit


def test_rounding_is_measured_and_refused_where_it_changes_words(digits, digits_bundled, monkeypatch):
    model = from_whisper(digits, latent_dtype="int4")
    quality = model.conversion_record["quality"]
    assert quality["measured_on"] == bundled_speech.MEASURED_ON
    assert quality["words"] == {"rate": 0.0, "words": 39, "same_clips": 4, "clips": 4}
    assert 0 < quality["kl_per_token"] < 0.01
    calibration = model.conversion_record["calibration"]
    assert (calibration["bundled"], calibration["used"], calibration["held_out_windows"]) == (True, False, 4)
    assert model.conversion_record["method"] == "exact" and model.config.latent_dtype == "int4"
    monkeypatch.setattr("whisper_mla.conversion.ranks.quality.WORD_CHANGE_LIMIT", -0.01)
    with pytest.raises(ConversionError, match="loses too much"):
        from_whisper(digits, latent_dtype="int4")
    assert from_whisper(digits, latent_dtype="int4", force=True).conversion_record["quality"] == quality


def test_a_rank_is_calibrated_and_measured(digits, digits_bundled):
    record = from_whisper(digits, kv_rank=96).conversion_record
    assert record["method"] == "fisher" and record["refit"] is None and record["calibration"]["used"]
    assert record["quality"]["words"] == {"rate": 0.0, "words": 11, "same_clips": 1, "clips": 1}


def test_a_refusal_has_all_figures():
    def quality(rate):
        return Quality(0.123, 0.9, 50, WordChanges(rate, 200, 3, 7), "some speech")

    for rate in (None, 0.0, 0.05):
        refuse_changes(quality(rate))
    refuse_changes(Quality(9.0, 0.0, 50))
    with pytest.raises(ConversionError) as error:
        refuse_changes(quality(0.061))
    for figure in ("6.1% against", "200 words on some speech", "3 of 7", "limit 5%", "KL 0.12", "90.0%", "force=True"):
        assert figure in str(error.value)


def test_speech_of_another_kind_measures_nothing(digits, warnings):
    """whisper-digits knows digits alone: the speech that comes along says nothing of it."""
    model = from_whisper(digits, kv_rank=64)
    assert any("not what this model transcribes" in text for text in warnings)
    assert model.conversion_record["method"] == "joint_svd" and model.conversion_record["quality"] is None
    with pytest.raises(ValueError, match="floor: belongs to method='fisher', which needs calibration audio"):
        from_whisper(digits, kv_rank=64, floor=0.1)


def test_without_a_processor_or_with_a_method_by_name(warnings):
    model = from_whisper(random_whisper(), kv_rank=8)
    assert "no processor" in warnings.pop() and model.conversion_record["method"] == "joint_svd"
    from_whisper(random_whisper(), kv_rank=8, method="layer_norm")
    assert "method='layer_norm' without audio: neither calibrated nor measured" in warnings.pop()
    from_whisper(random_whisper())
    from_whisper(random_whisper(), cross_cache="key_value")
    assert not warnings


def test_greedy_decoding_of_held_out_clips(digits, processor, clips):
    """In batches of unlike sizes, from encoder states that are kept and from new ones."""
    names = ("clip00", "clip03", "clip04")
    examples = make_examples(digits, processor, read_clips([clips[name]["path"] for name in names]))
    for batch_size, same_encoder in ((2, True), (3, False)):
        found = HeldOut(digits, examples, batch_size).decode(digits, same_encoder)
        texts = processor.tokenizer.batch_decode(found, skip_special_tokens=True)
        assert [text.strip() for text in texts] == [clips[name]["text"] for name in names]


def test_words_are_counted_after_normalisation():
    changes = count_word_changes(
        ["one two three", "four five six seven", ""], ["One, two three!", "four six six seven eight", ""], "en"
    )
    assert (changes.words, changes.same_clips, changes.clips) == (7, 2, 3)
    assert changes.rate == pytest.approx(2 / 7)
    nothing = count_word_changes([""], ["something"])
    assert nothing.rate is None and nothing.words == 0
    assert count_word_changes(["你好吗"], ["你好呢"], "chinese").rate == pytest.approx(1 / 3)
