"""What the transcriber asks of the model."""

import pytest
import torch

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
