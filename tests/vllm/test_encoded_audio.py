"""Audio that was just heard is not encoded again; vLLM is not needed."""

import torch

from whisper_mla.vllm_plugin.encoded_audio import EncodedAudio


class Encoder:
    """Counts what it encodes."""

    def __init__(self):
        self.windows = 0

    def __call__(self, features):
        self.windows += 1
        return features.transpose(1, 2) * 2


def test_beams_of_one_audio_encode_it_once():
    encoder = Encoder()
    encoded = EncodedAudio(encoder, kept=2)
    first, second = torch.randn(80, 6), torch.randn(80, 6)
    for features in (first, second, first, second, first.clone()):
        torch.testing.assert_close(encoded(features), features.T * 2, rtol=0, atol=0)
    assert encoder.windows == 2


def test_the_oldest_is_forgotten_and_nothing_is_mixed_up():
    encoder = Encoder()
    encoded = EncodedAudio(encoder, kept=2)
    windows = [torch.randn(80, 6) for _ in range(3)]
    for features in [*windows, windows[0]]:
        torch.testing.assert_close(encoded(features), features.T * 2, rtol=0, atol=0)
    assert encoder.windows == 4 and len(encoded.kept) == 2


def test_features_in_memory_that_is_used_again_and_other_lengths():
    encoder = Encoder()
    encoded = EncodedAudio(encoder)
    buffer = torch.zeros(80, 6)
    encoded(buffer)
    buffer += 1
    torch.testing.assert_close(encoded(buffer), torch.full((6, 80), 2.0))
    assert encoded(torch.zeros(80, 4)).shape == (4, 80)
    assert encoder.windows == 3
