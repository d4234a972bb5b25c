"""Examples to batches: audio to log-mel features, transcripts to padded labels."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor

from whisper_mla.transcription.audio import SAMPLING_RATE

from .labels import LabelMaker
from .losses import IGNORED
from .speech_data import decode_audio


class SpeechCollator:
    """Makes a batch out of examples `{"audio", "text", "language"}`.

    Args:
        feature_extractor: of the checkpoint; audio is padded, or cut, to its window.
        label_maker: see [`LabelMaker`].
        with_attention_mask: return the mask that tells audio from padding, which SpecAugment needs to mask audio only.
    """

    def __init__(
        self, feature_extractor: WhisperFeatureExtractor, label_maker: LabelMaker, with_attention_mask: bool = False
    ):
        self.feature_extractor, self.label_maker = feature_extractor, label_maker
        self.with_attention_mask = with_attention_mask

    def __call__(self, examples: list[Mapping[str, Any]]) -> dict[str, Tensor]:
        """A batch.

        Returns:
            dict: `input_features` `[batch, mel bins, frames]` float32, `labels` `[batch, T]` padded with -100, and
            `attention_mask` `[batch, frames]` if asked for.

        Raises:
            AudioError: audio that cannot be read.
            ValueError: a transcript that is missing or empty, or a language that the tokenizer does not have.
        """
        batch = dict(
            self.feature_extractor(
                [decode_audio(example["audio"]) for example in examples],
                sampling_rate=SAMPLING_RATE,
                return_tensors="pt",
                return_attention_mask=self.with_attention_mask,
            )
        )
        labels = [torch.tensor(self.label_maker(example["text"], example.get("language"))) for example in examples]
        batch["labels"] = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORED)
        return batch
