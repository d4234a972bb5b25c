"""Clips made into examples, and examples made into batches."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.conftest import random_whisper
from tests.conversion.tiny import random_examples
from whisper_mla.conversion import ConversionError
from whisper_mla.conversion.calibration import make_examples as making
from whisper_mla.conversion.calibration.clips import Clip
from whisper_mla.conversion.calibration.examples import batches, forced_logits, like_lengths
from whisper_mla.conversion.calibration.make_examples import make_examples


def test_transcripts_are_used_where_there_are_any(digits, processor, clips, monkeypatch):
    monkeypatch.setattr(digits, "generate", lambda *a, **k: pytest.fail("nothing to transcribe"), raising=True)
    clip = Clip("a", clips["clip00"]["samples"], "nine nine")
    (example,) = make_examples(digits, processor, [clip], language="en")
    assert processor.decode(example.decoder_input_ids, skip_special_tokens=True).strip() == "nine nine"
    assert processor.tokenizer.eos_token_id not in example.decoder_input_ids
    assert example.prompt_length == 4
    prompt = processor.tokenizer.convert_ids_to_tokens(example.decoder_input_ids[:4].tolist())
    assert prompt == ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    features = processor(clip.samples, sampling_rate=16_000, return_tensors="pt").input_features[0]
    assert torch.equal(example.input_features, features)


def test_without_transcripts_the_model_transcribes(digits, processor, clips):
    names = ("clip00", "clip03")
    examples = make_examples(digits, processor, [Clip(name, clips[name]["samples"]) for name in names], language="en")
    for name, example in zip(names, examples, strict=True):
        inputs = processor(clips[name]["samples"], sampling_rate=16_000, return_tensors="pt")
        expected = digits.generate(**inputs, language="en")[0].tolist()  # without the prompt
        tokens = example.decoder_input_ids.tolist()
        assert example.prompt_length == 4 and len(tokens) > 8
        assert tokens[4:] == [token for token in expected if token != 256]


def test_examples_are_in_the_order_of_the_clips_and_keep_what_the_encoder_made(digits, processor, clips):
    """They are taken by length, in three batches; one was transcribed before."""
    chosen = [Clip(name, clips[name]["samples"]) for name in ("clip03", "clip00", "clip05", "clip02", "clip04")]
    before = [7, 7, 7]
    transcripts, told = {1: before}, []
    examples = make_examples(
        digits,
        processor,
        chosen,
        language="en",
        batch_size=2,
        encode=True,
        transcripts=transcripts,
        after_batch=lambda *batch: told.append(batch),
    )
    assert examples[1].decoder_input_ids.tolist() == before and transcripts.keys() == {0, 1, 2, 3, 4}
    assert [left for _, _, left in told] == [3, 1, 0] and all(is_typical for _, is_typical, _ in told)
    assert {id(example) for made, _, _ in told for example in made} == {id(example) for example in examples}
    for clip, example in zip(chosen, examples, strict=True):
        inputs = processor(clip.samples, sampling_rate=16_000, return_tensors="pt").input_features
        assert torch.equal(example.input_features, inputs[0])
        with torch.no_grad():
            states = digits.get_encoder()(inputs).last_hidden_state[0]
        assert torch.allclose(example.encoder_states, states, atol=1e-4)
        assert not example.encoder_states.is_inference()
    for index, clip in enumerate(chosen):
        if index != 1:
            (alone,) = make_examples(digits, processor, [clip], language="en")
            assert alone.decoder_input_ids.tolist() == examples[index].decoder_input_ids.tolist()


def test_what_the_encoder_makes_is_kept_on_demand_and_not_without_bounds(digits, processor, clips, monkeypatch):
    clip = Clip("a", clips["clip00"]["samples"], "nine nine")
    (example,) = make_examples(digits, processor, [clip], language="en")
    assert example.encoder_states is None
    (example,) = make_examples(digits, processor, [clip], language="en", encode=True)
    assert example.encoder_states.shape == (500, digits.config.d_model)
    monkeypatch.setattr(making, "_KEPT", 4 * 500 * digits.config.d_model - 1)
    unread = Clip("a", clips["clip00"]["samples"])
    for given in (clip, unread):
        (example,) = make_examples(digits, processor, [given], language="en", encode=True)
        assert example.encoder_states is None


def test_without_a_language_it_is_detected_from_what_the_encoder_made(digits, processor, clips):
    clip = Clip("a", clips["clip00"]["samples"])
    (example,) = make_examples(digits, processor, [clip])
    expected = digits.generate(processor(clip.samples, sampling_rate=16_000, return_tensors="pt").input_features)
    said = [token for token in expected[0].tolist() if token != processor.tokenizer.eos_token_id]
    assert example.decoder_input_ids.tolist()[-len(said) :] == said


def test_batches_of_like_lengths_the_middle_one_first():
    lengths = [3, 90, 4, 50, 91, 51, 2, 92]
    order = like_lengths(lengths, 3)
    assert [lengths[index] for index in order] == [51, 50, 4, 92, 91, 90, 3, 2]
    assert like_lengths([5, 7], 4) == [1, 0] and like_lengths([], 4) == []
    assert [lengths[index] for index in like_lengths(lengths, 7)] == [92, 91, 90, 51, 50, 4, 3, 2]


def test_what_the_encoder_made_stands_for_the_audio():
    model = random_whisper()
    (example,) = random_examples(model, [4])
    with torch.no_grad():
        states = model.get_encoder()(example.input_features[None]).last_hidden_state
        expected = model(example.input_features[None], decoder_input_ids=example.decoder_input_ids[None]).logits
        silent = replace(example, input_features=torch.zeros_like(example.input_features), encoder_states=states[0])
        (batch,) = batches([silent], 4, model)
        assert torch.allclose(forced_logits(model, batch, through_encoder=False), expected, atol=1e-5)
        assert not torch.allclose(forced_logits(model, batch, through_encoder=True), expected, atol=1e-2)
        (batch,) = batches([silent, example], 4, model)  # not known of all
        assert "encoder_states" not in batch


def test_the_tokenizer_of_the_caller_keeps_its_language(digits, processor, clips):
    before = processor.tokenizer.prefix_tokens
    clip = Clip("a", clips["clip00"]["samples"], "one")
    (example,) = make_examples(digits, processor, [clip], language="de", task="translate")
    prompt = processor.tokenizer.convert_ids_to_tokens(example.decoder_input_ids[:4].tolist())
    assert prompt[1:3] == ["<|de|>", "<|translate|>"]
    assert processor.tokenizer.prefix_tokens == before


def test_long_audio_is_cut_into_windows(digits, processor, clips):
    long = clips["long"]["samples"]
    window = processor.feature_extractor.n_samples
    assert len(long) // window == 3 and len(long) % window > 16_000
    examples = make_examples(digits, processor, [Clip("long", long, "not used: it is of all windows")], language="en")
    assert len(examples) == 4
    texts = [processor.decode(example.decoder_input_ids, skip_special_tokens=True).strip() for example in examples]
    assert len(set(texts)) == 4 and all(texts) and not any("not used" in text for text in texts)
    second = processor(long[window : 2 * window], sampling_rate=16_000, return_tensors="pt").input_features[0]
    assert torch.equal(examples[1].input_features, second)
    scrap = Clip("scrap", long[: window + 9000])  # 0.6 s beyond the window
    assert len(make_examples(digits, processor, [scrap], language="en")) == 1
    short = Clip("short", long[:3000])
    assert len(make_examples(digits, processor, [short], language="en")) == 1


def test_a_language_for_an_english_only_model(processor):
    with pytest.raises(ConversionError, match="language='de', task=None: this model knows English"):
        make_examples(random_whisper(), processor, [Clip("a", np.zeros(9, np.float32))], language="de")
