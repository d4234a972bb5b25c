"""Times of tokens and words against those of stock Whisper's pipeline, which takes them while it generates."""

import numpy as np
import pytest
import torch
from transformers import pipeline

from whisper_mla.token_times import alignment_matrix, warped_times
from whisper_mla.transcription.fallback import NO_FALLBACK
from whisper_mla.transcription.transcriber import Transcriber
from whisper_mla.transcription.word_times import word_spans


def stock_words(model, processor, samples) -> list[tuple]:
    speech = pipeline(
        "automatic-speech-recognition",
        model=model,
        tokenizer=processor.tokenizer,
        feature_extractor=processor.feature_extractor,
    )
    chunks = speech(samples.copy(), return_timestamps="word", generate_kwargs={"num_beams": 1})["chunks"]
    return [(chunk["text"].strip(), *chunk["timestamp"]) for chunk in chunks]


def test_words_have_the_times_of_stock_whispers_pipeline(exact, digits, processor, fresh, clips):
    """In a batch of unequal files, one of them longer than a window."""
    audios = [clips["clip03"]["samples"], clips["long"]["samples"][:200_000], clips["clip04"]["samples"]]
    ours = Transcriber(exact, processor, timestamps="word", fallback=NO_FALLBACK)(audios)
    for transcript, samples in zip(ours, audios, strict=True):
        expected = stock_words(fresh(digits), processor, samples)
        assert [word.text for word in transcript.words] == [text for text, _, _ in expected]
        found = np.array([(word.start, word.end) for word in transcript.words])
        assert np.abs(found - np.array([times for _, *times in expected])).max() <= 0.0201
        assert found[0, 0] == 0.0  # not the end of the first token


def test_words_with_beams_lie_within_their_segments(exact, processor, clips):
    samples = clips["clip04"]["samples"]
    (transcript,) = Transcriber(exact, processor, timestamps="word", num_beams=2)([samples])
    assert [word.text for word in transcript.words] == clips["clip04"]["text"].split()
    for word in transcript.words:
        assert 0 <= word.start <= word.end <= len(samples) / 16_000
        assert any(part.start <= word.start and word.end <= part.end for part in transcript.segments)


def test_the_attention_implementation_is_left_as_it_was(exact, processor, clips):
    before = exact.config._attn_implementation
    Transcriber(exact, processor, timestamps="word")([clips["clip00"]["samples"]])
    assert before == exact.config._attn_implementation != "eager"


@pytest.mark.parametrize("samples", [1, 160, 400, 3200])
def test_audio_of_a_moment_has_times_within_it(exact, processor, clips, samples):
    audio = clips["clip00"]["samples"][8000 : 8000 + samples]
    (transcript,) = Transcriber(exact, processor, timestamps="word", fallback=NO_FALLBACK)([audio])
    for span in [*transcript.words, *transcript.segments]:
        assert 0 <= span.start <= span.end <= max(round(samples / 16_000, 2), 0.01)


def test_frames_without_a_difference_tell_nothing():
    """As in half precision, where small weights are 0 for all tokens."""
    attention = torch.zeros(2, 3, 40, dtype=torch.float16)
    attention[:, 0, 2:9] = attention[:, 1, 12:19] = attention[:, 2, 22:29] = 0.1
    matrix = alignment_matrix(attention, 7)
    assert matrix.dtype == torch.float32 and torch.isfinite(matrix).all()
    first, second, third = warped_times(matrix)
    assert first == 0 and 0.14 < second <= 0.26 and 0.34 < third <= 0.46
    assert torch.isfinite(alignment_matrix(attention[:, :1], 7)).all()


def test_languages_without_spaces_are_split_into_characters(processor):
    text = "復興努力"
    tokens = processor.tokenizer(text, add_special_tokens=False).input_ids
    ends = [0.1 * (i + 1) for i in range(len(tokens))]
    words = word_spans(processor.tokenizer, tokens, ends, 0, len(tokens), set(), "ja", offset=2.0)
    assert [word.text for word in words] == list(text)
    assert words[0].start == 2.0 and words[-1].end == round(2.0 + ends[-1], 2)
    assert [word.end for word in words[:-1]] == [word.start for word in words[1:]]
    assert len(word_spans(processor.tokenizer, tokens, ends, 0, len(tokens), set(), "en", offset=2.0)) == 1
