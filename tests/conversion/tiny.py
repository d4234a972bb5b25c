"""Statistics of tiny random models: calibration without audio, and so without a processor."""

import torch

from tests.conftest import random_features
from whisper_mla.conversion.calibration.calibrate import weights_fingerprint
from whisper_mla.conversion.calibration.examples import Example
from whisper_mla.conversion.calibration.gather_statistics import gather_statistics
from whisper_mla.conversion.calibration.statistics import Statistics


def random_examples(model, lengths, seed: int = 0, prompt_length: int = 2) -> list[Example]:
    """Noise for audio, and as many random tokens as `lengths` says."""
    features = random_features(model, batch=len(lengths), seed=seed + 1)
    generator = torch.Generator().manual_seed(seed)
    return [
        Example(row, torch.randint(4, model.config.vocab_size, (length,), generator=generator), prompt_length)
        for row, length in zip(features, lengths, strict=True)
    ]


def random_statistics(model, clips: int = 12, held_out: int = 4, **options) -> Statistics:
    """What `calibrate` would give, of random clips: 30 audio vectors and 12 text vectors each."""
    examples = random_examples(model, [12] * (clips + held_out), seed=5)
    statistics = gather_statistics(model, examples[held_out:], **options)
    statistics.examples, statistics.held_out = examples[held_out:], examples[:held_out]
    statistics.source = {"model": "random", "model_sha256": weights_fingerprint(model), "clips": clips, "seconds": 1.0}
    return statistics


def forced(model, example: Example) -> torch.Tensor:
    """Logits `[tokens, vocabulary]` of one example, alone."""
    with torch.no_grad():
        return model(example.input_features[None], decoder_input_ids=example.decoder_input_ids[None]).logits[0]
