"""Labels are what Whisper itself writes."""

import pytest
import torch

from whisper_mla.training.collator import SpeechCollator
from whisper_mla.training.labels import LabelMaker


def test_labels_are_the_tokens_that_the_model_generates(digits, processor, clips, speech):
    """whisper-digits transcribes these clips perfectly, so its own tokens are the labels of their transcripts."""
    names = ("clip00", "clip03", "clip04", "clip07")
    tokens = digits.generate(speech["input_features"], language="en", task="transcribe")
    maker = LabelMaker(processor.tokenizer)
    for row, name in zip(tokens.tolist(), names, strict=True):
        labels = maker(clips[name]["text"], "en")
        assert processor.tokenizer.convert_ids_to_tokens(labels[:3]) == ["<|en|>", "<|transcribe|>", "<|notimestamps|>"]
        assert labels[-1] == processor.tokenizer.eos_token_id
        assert [token for token in row if token != 256] == labels[3:-1]


def test_collated_batch_gives_the_decoder_input_that_generation_starts_from(digits, processor, clips):
    collator = SpeechCollator(processor.feature_extractor, LabelMaker(processor.tokenizer), with_attention_mask=True)
    examples = [
        {"audio": {"array": clips[name]["samples"], "sampling_rate": 16_000}, "text": text, "language": "english"}
        for name, text in (("clip00", "one"), ("clip03", clips["clip03"]["text"]))
    ]
    batch = collator(examples)
    assert batch["input_features"].shape == (2, 80, 1000)
    assert batch["attention_mask"].sum(1).tolist() == [
        pytest.approx(len(clips[name]["samples"]) / 160, abs=1) for name in ("clip00", "clip03")
    ]
    assert (batch["labels"][0] == -100).sum() == len(clips["clip03"]["text"]) - len("one")
    with torch.no_grad():
        assert digits(**{**batch, "attention_mask": None}).loss < 5


def test_text_without_spaces_in_capitals_and_in_english_only_models(tiny_processor):
    tokenizer = tiny_processor.tokenizer
    maker = LabelMaker(tokenizer)
    spoken = lambda labels: tokenizer.decode(labels, skip_special_tokens=True)  # noqa: E731
    assert spoken(maker(" one ", "en")) == " one"
    assert spoken(maker("one", "Japanese")) == "one"
    assert spoken(LabelMaker(tokenizer, lowercase=True)("ONE", "en")) == " one"
    english_only = LabelMaker(tokenizer, is_multilingual=False)("one", None)
    assert tokenizer.convert_ids_to_tokens(english_only[:1]) == ["<|notimestamps|>"]
    assert tokenizer.convert_ids_to_tokens(LabelMaker(tokenizer, task="translate")("a", "de")[:2])[1] == "<|translate|>"


@pytest.mark.parametrize(
    ("language", "message"),
    [
        ("klingon", "language='klingon': the tokenizer does not have it. It has: af, am"),
        (None, "language: not said of this dataset"),
        ("", "language: not said of this dataset"),
    ],
)
def test_bad_language(label_maker, language, message):
    with pytest.raises(ValueError, match=message):
        label_maker("one", language)


def test_bad_text_and_task(label_maker, tiny_processor):
    for text in (None, "", "  "):
        with pytest.raises(ValueError, match="text: missing or empty"):
            label_maker(text, "en")
    with pytest.raises(ValueError, match="task='dictate': expected 'transcribe' or 'translate'"):
        LabelMaker(tiny_processor.tokenizer, task="dictate")
    with pytest.raises(ValueError, match="language='de': this model is English-only"):
        LabelMaker(tiny_processor.tokenizer, is_multilingual=False)("one", "de")
