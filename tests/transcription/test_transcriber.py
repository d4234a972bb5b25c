"""What the transcriber asks of the model."""

import copy
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from whisper_mla.transcription import decoding
from whisper_mla.transcription.fallback import NO_FALLBACK, FallbackOptions
from whisper_mla.transcription.transcriber import Transcriber


@pytest.fixture
def asked(exact, fresh, monkeypatch):
    """A model, and the arguments of its last generate()."""
    model, arguments = fresh(exact), {}
    original = model.generate

    def generate(*args, **kwargs):
        arguments.clear()
        arguments.update(kwargs)
        return original(*args, **kwargs)

    monkeypatch.setattr(model, "generate", generate)
    return model, arguments


def test_options_reach_generate(asked, processor, clips):
    model, arguments = asked
    transcriber = Transcriber(model, processor, language="German", task="translate", num_beams=3)
    assert transcriber([clips["clip00"]["samples"]])[0].language == "de"
    assert (arguments["language"], arguments["task"], arguments["num_beams"]) == (["<|de|>"], "translate", 3)
    assert not arguments["return_timestamps"]


def test_defaults_are_the_models_own(asked, processor, clips):
    model, arguments = asked
    Transcriber(model, processor)([clips["clip00"]["samples"]])
    assert (arguments["language"], arguments["task"]) == (["<|en|>"], "transcribe")  # as its generation config says


def test_progress_is_reported_window_by_window(exact, processor, clips):
    seen = []
    Transcriber(exact, processor)([clips["long"]["samples"][:300_000]], seen.append)
    done = [int(frames[0, 0]) for frames in seen]
    assert len(done) >= 2 and done == sorted(done) and done[0] == 0
    assert all(torch.equal(frames[:, 1], seen[0][:, 1]) for frames in seen)


def test_neighbours_do_not_change_a_transcript(exact, processor, clips):
    transcriber = Transcriber(exact, processor)
    long = clips["long"]["samples"]
    audios = [clips["clip02"]["samples"], long[:170_000], clips["clip00"]["samples"], long[:250_000]]
    assert transcriber(audios) == [transcriber([samples])[0] for samples in audios]


def test_threads_that_sample_do_not_disturb_each_other(exact, processor, clips):
    """All threads of a process draw from one generator of random numbers."""
    unsure = FallbackOptions((0.0, 1.0), logprob_threshold=0.0)
    transcriber = Transcriber(exact, processor, fallback=unsure)
    before = torch.get_rng_state()
    audios = [clips[f"clip0{i}"]["samples"][:24_000] for i in range(4)]
    expected = [transcriber([samples])[0] for samples in audios]
    assert all(transcript.fallbacks for transcript in expected)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda number: transcriber([audios[number % 4]])[0], range(16)))
    assert [transcript.text for transcript in found] == [transcript.text for transcript in expected] * 4
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"timestamps": "letter"}, "timestamps='letter'"), ({"language": "xx"}, "language='xx'.*It has: af, am")],
)
def test_what_the_model_cannot_do(exact, processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        Transcriber(exact, processor, **arguments)


def test_word_timestamps_need_alignment_heads(exact, processor, fresh):
    model = fresh(exact)
    model.generation_config.alignment_heads = None
    with pytest.raises(ValueError, match="no alignment_heads"):
        Transcriber(model, processor, timestamps="word")


def test_an_english_only_model(exact, processor, fresh, clips):
    model = fresh(exact)
    model.generation_config.is_multilingual = False
    with pytest.raises(ValueError, match="only transcribes English"):
        Transcriber(model, processor, language="de")
    with pytest.raises(ValueError, match="only transcribes English"):
        Transcriber(model, processor, task="translate")
    assert Transcriber(model, processor, language="en").language is None


def test_a_tokenizer_without_timestamp_tokens(exact, processor, clips, monkeypatch):
    """Such a tokenizer writes ids of times as text. Here all of them read as a word."""
    tokenizer = copy.deepcopy(processor.tokenizer)
    first = exact.generation_config.no_timestamps_token_id + 1
    listed = tokenizer.added_tokens_decoder
    monkeypatch.setattr(
        type(tokenizer), "added_tokens_decoder", property(lambda self: {i: t for i, t in listed.items() if i < first})
    )
    other = SimpleNamespace(tokenizer=tokenizer, feature_extractor=processor.feature_extractor)
    (transcript,) = Transcriber(exact, other, timestamps="word")([clips["clip04"]["samples"]])
    assert transcript.text == clips["clip04"]["text"] == " ".join(word.text for word in transcript.words)
    assert "<|" not in transcript.segments[0].text


def decoder_that_says(monkeypatch, decoder, texts, logprob=-0.2):
    """Let a decoder give one text after another, at whatever temperature."""
    asked = []

    def generate(windows, encoded, temperature):
        asked.append(temperature)
        tokens = decoder.tokenizer(texts[min(len(asked), len(texts)) - 1], add_special_tokens=False).input_ids
        return [decoding._Generated([], tokens, logprob) for _ in windows]

    monkeypatch.setattr(decoder, "_generate", generate)
    return asked


def test_a_loop_falls_back(exact, processor, clips, monkeypatch):
    transcriber = Transcriber(exact, processor)
    asked = decoder_that_says(monkeypatch, transcriber.decoder, ["one one " * 40, "two two " * 50, "one two"])
    (transcript,) = transcriber([clips["clip00"]["samples"]])
    assert (transcript.text, transcript.fallbacks, asked) == ("one two", 1, [0.0, 0.2, 0.4])


def test_without_fallback_a_loop_stays(exact, processor, clips, monkeypatch):
    transcriber = Transcriber(exact, processor, fallback=NO_FALLBACK)
    asked = decoder_that_says(monkeypatch, transcriber.decoder, ["one one " * 40])
    (transcript,) = transcriber([clips["clip00"]["samples"]])
    assert (transcript.fallbacks, asked) == (0, [0.0]) and transcript.text.count("one") == 80


def test_a_window_without_speech_is_skipped(exact, processor, clips, monkeypatch):
    """The model is unsure, and the probability of no speech is above the threshold, which is set to 0 here."""
    samples = clips["clip00"]["samples"]
    options = FallbackOptions(no_speech_threshold=0.0)
    transcriber = Transcriber(exact, processor, fallback=options)
    asked = decoder_that_says(monkeypatch, transcriber.decoder, ["one"], logprob=-1.5)
    (transcript,) = transcriber([samples])
    assert transcript.text == "" and asked == [0.0]
    assert transcript.skipped_seconds == pytest.approx(len(samples) / 16_000, abs=0.02)


def test_sampling_is_repeatable_and_alone(exact, processor, clips):
    options = FallbackOptions((0.0, 1.0), logprob_threshold=0.0, no_speech_threshold=None)  # every window falls back
    transcriber = Transcriber(exact, processor, fallback=options)
    one, two = clips["clip00"]["samples"], clips["clip03"]["samples"]
    state = torch.get_rng_state()
    both = transcriber([one, two])
    assert [transcript.fallbacks for transcript in both] == [1, 1]
    assert transcriber([two])[0] == both[1] and torch.equal(state, torch.get_rng_state())


def test_text_before_a_window_is_shown_to_it(asked, processor, clips):
    model, arguments = asked
    options = FallbackOptions(condition_on_prev_tokens=True)
    (transcript,) = Transcriber(model, processor, fallback=options)([clips["long"]["samples"][:170_000]])
    prompt = arguments["prompt_ids"].tolist()
    assert prompt[0] == model.generation_config.prev_sot_token_id
    assert transcript.text.startswith(processor.tokenizer.decode(prompt[1:], skip_special_tokens=True).strip()[:20])
