"""Where in a recording somebody speaks: Silero VAD (https://github.com/snakers4/silero-vad), an extra.

`pip install "whisper-mla[vad]"`. What holds no speech is not shown to Whisper, which would invent text for it.
"""

from typing import Any

import numpy as np
import torch

from .audio import SAMPLING_RATE

# Stretches are cut only at long silences, and keep some of it on both sides: Whisper needs the context.
SILENCE_SECONDS = 2.0
MARGIN_SECONDS = 0.4


class VoiceActivityDetector:
    """Finds the stretches of a recording that hold speech.

    Args:
        threshold: probability of speech above which a moment counts as speech.

    Raises:
        ValueError: the extra is not installed, or a threshold that is no probability.
    """

    def __init__(self, threshold: float = 0.5):
        if not 0 < threshold < 1:
            raise ValueError(f"vad threshold={threshold}: expected a probability between 0 and 1, such as 0.5.")
        threads = torch.get_num_threads()
        try:
            from silero_vad import get_speech_timestamps, load_silero_vad
        except ImportError as error:
            raise ValueError('Voice activity detection needs an extra: pip install "whisper-mla[vad]"') from error
        self.threshold = threshold
        torch.set_num_threads(threads)  # importing it sets one thread for the whole process
        self._model: Any = load_silero_vad()
        self._find = get_speech_timestamps

    def __call__(self, audio: np.ndarray) -> list[tuple[int, int]]:
        """Stretches of speech.

        Args:
            audio: float32 `[samples]` at 16 kHz.

        Returns:
            list[tuple[int, int]]: first sample and the one after the last, in order and apart; none without speech.
        """
        found = self._find(
            torch.tensor(audio),
            self._model,
            threshold=self.threshold,
            sampling_rate=SAMPLING_RATE,
            min_silence_duration_ms=int(1000 * SILENCE_SECONDS),
            speech_pad_ms=int(1000 * MARGIN_SECONDS),
        )
        return [(int(part["start"]), min(int(part["end"]), len(audio))) for part in found]
