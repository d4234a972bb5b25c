"""No lossy conversion without a word on what it costs: calibrated and measured on the speech that comes along."""

import shutil

import pytest
import soundfile
import torch

from tests.conftest import ASSETS, random_whisper
from whisper_mla.conversion import ConversionError, from_whisper
from whisper_mla.conversion.calibration import bundled_speech
from whisper_mla.conversion.calibration.clips import read_clips
from whisper_mla.conversion.calibration.make_examples import make_examples
from whisper_mla.conversion.calibration.word_changes import count_word_changes
from whisper_mla.conversion.ranks.quality import HeldOut


@pytest.fixture
def digits_bundled(monkeypatch, tmp_path):
    """Speech that whisper-digits understands, in place of what comes along."""
    rows = (ASSETS / "clips" / "metadata.csv").read_text().splitlines()
    names = ("file_name", "clip00", "clip03", "clip04", "clip07", "clip10", "clip11")
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


def test_rounding_is_measured(digits, digits_bundled):
    model = from_whisper(digits, latent_dtype="int4")
    quality = model.conversion_record["quality"]
    assert quality["measured_on"] == bundled_speech.MEASURED_ON
    assert quality["words"] == {"rate": 0.0, "words": quality["words"]["words"], "same_clips": 6, "clips": 6}
    assert quality["words"]["words"] > 20 and 0 < quality["kl_per_token"] < 0.01
    calibration = model.conversion_record["calibration"]
    assert (calibration["bundled"], calibration["used"], calibration["held_out_windows"]) == (True, False, 6)
    assert model.conversion_record["method"] == "exact" and model.config.latent_dtype == "int4"


def test_a_rank_is_calibrated_and_measured_and_refused_where_it_changes_words(digits, digits_bundled):
    model = from_whisper(digits, kv_rank=96)
    assert model.conversion_record["method"] == "fisher" and model.conversion_record["refit"] is None
    assert model.conversion_record["calibration"]["used"]
    assert model.conversion_record["quality"]["words"] == {"rate": 0.0, "words": 23, "same_clips": 2, "clips": 2}
    with pytest.raises(
        ConversionError, match=r"word error rate \d+\.\d% against the stock model's own 23 words"
    ) as error:
        from_whisper(digits, kv_rank=2, cross_kv_rank=2)
    for figure in ("KL", "same next token", "limit 5%", "force=True", "latent_dtype='int4'"):
        assert figure in str(error.value)
    forced = from_whisper(digits, kv_rank=2, cross_kv_rank=2, force=True)
    assert forced.conversion_record["quality"]["words"]["rate"] > 0.05


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


def test_greedy_decoding_of_held_out_clips_is_generate(digits, processor, clips, speech):
    examples = make_examples(digits, processor, read_clips([clips[f"clip0{i}"]["path"] for i in (0, 3, 4, 7)]))
    found = HeldOut(digits, examples, batch_size=3).decode(digits, same_encoder=True)
    expected = digits.generate(**speech, language="en", task="transcribe")
    texts = [processor.tokenizer.batch_decode(side, skip_special_tokens=True) for side in (found, expected)]
    assert texts[0] == texts[1] == [f" {clips[f'clip0{i}']['text']}" for i in (0, 3, 4, 7)]
    reencoded = HeldOut(digits, examples).decode(digits, same_encoder=False)
    assert processor.tokenizer.batch_decode(reencoded, skip_special_tokens=True) == texts[0]


def test_words_are_counted_after_normalisation():
    changes = count_word_changes(
        ["one two three", "four five six seven", ""], ["One, two three!", "four six six seven eight", ""], "en"
    )
    assert (changes.words, changes.same_clips, changes.clips) == (7, 2, 3)
    assert changes.rate == pytest.approx(2 / 7)
    nothing = count_word_changes([""], ["something"])
    assert nothing.rate is None and nothing.words == 0
    assert count_word_changes(["你好吗"], ["你好呢"], "chinese").rate == pytest.approx(1 / 3)


def test_the_stock_model_is_left_as_it_was(digits, digits_bundled, fresh):
    stock = fresh(digits)
    from_whisper(stock, latent_dtype="int8")
    for name, tensor in digits.state_dict().items():
        assert torch.equal(stock.state_dict()[name], tensor)
