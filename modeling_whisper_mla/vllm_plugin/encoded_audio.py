"""Encoder outputs of the audio that was heard last. vLLM is not needed.

vLLM 0.32 keeps none for encoder-decoder models: each step of a beam search is a new request per beam, and each would
encode the same audio again; so would a request after its own detection of the language, and one that begins again
because it had to give its blocks back.
"""

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

# Windows of audio that beam searches side by side are likely to come back to.
KEPT = 8


class EncodedAudio:
    """Encodes what it has not kept.

    Args:
        encode: features `[1, mels, frames]` → `[1, positions, d]`.
        kept: how many windows of audio to keep, with their features.
    """

    def __init__(self, encode: Callable[[Tensor], Tensor], kept: int = KEPT):
        self.encode = encode
        self.kept: deque[tuple[Tensor, Tensor]] = deque(maxlen=kept)

    def __call__(self, features: Tensor) -> Tensor:
        """The encoder output `[positions, d]` of one window of audio, `[mels, frames]`."""
        for heard, output in self.kept:
            if heard.shape == features.shape and torch.equal(heard, features):
                return output
        output = self.encode(features[None])[0]
        # A copy: the features lie in memory that vLLM may use again.
        self.kept.append((features.clone(), output))
        return output
