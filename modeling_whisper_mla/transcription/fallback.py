"""When a window is decoded again, and when it holds no speech: the rules of OpenAI's `transcribe`.

Decode at temperature 0; where the text repeats itself or the model was unsure, decode again by sampling at rising
temperatures (arXiv 2212.04356, section 4.5; https://github.com/openai/whisper, transcribe.py).
"""

import zlib
from dataclasses import dataclass

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class FallbackOptions:
    """Temperatures and thresholds. None turns a threshold off.

    Attributes:
        temperatures: tried in turn; a single one: no fallback. Above 0 tokens are sampled, with a fixed seed.
        compression_ratio_threshold: above it the text repeats itself.
        logprob_threshold: below it the model was unsure; mean over the tokens, in nats.
        no_speech_threshold: a window of a higher probability of no speech, about which the model was unsure too, is
            skipped.
        condition_on_prev_tokens: give each window the text before it, except after a temperature of more than 0.5.
            Off as in Transformers: text is more consistent with it, and a loop goes on for longer.

    Raises:
        ValueError: a value out of its range.
    """

    temperatures: tuple[float, ...] = TEMPERATURES
    compression_ratio_threshold: float | None = 2.4
    logprob_threshold: float | None = -1.0
    no_speech_threshold: float | None = 0.6
    condition_on_prev_tokens: bool = False

    def __post_init__(self):
        temperatures = self.temperatures
        if not temperatures or list(temperatures) != sorted(temperatures) or temperatures[0] < 0:
            raise ValueError(f"temperatures={temperatures}: expected one or more rising numbers of at least 0.")
        ratio, silence = self.compression_ratio_threshold, self.no_speech_threshold
        if ratio is not None and ratio <= 0:
            raise ValueError(f"compression_ratio_threshold={ratio}: expected a number above 0, such as 2.4.")
        if silence is not None and not 0 <= silence <= 1:
            raise ValueError(f"no_speech_threshold={silence}: expected a probability from 0 to 1, such as 0.6.")


NO_FALLBACK = FallbackOptions((0.0,), None, None, None)


@dataclass(frozen=True)
class Quality:
    """What is known of one decoding of a window.

    Attributes:
        temperature: at which it was decoded.
        avg_logprob: mean log probability of its tokens, in nats.
        compression_ratio: of its text.
        no_speech_prob: of the window; None where nobody asked.
    """

    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float | None = None


def compression_ratio(text: str) -> float:
    """Bytes of `text` over its bytes after zlib; 2 is much for speech, loops have far more."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def is_silence(quality: Quality, options: FallbackOptions) -> bool:
    """Whether the window holds no speech: it seems so, and the model was unsure about what it wrote."""
    silence, unsure = options.no_speech_threshold, options.logprob_threshold
    if silence is None or quality.no_speech_prob is None or quality.no_speech_prob <= silence:
        return False
    return unsure is None or quality.avg_logprob < unsure


def repeats(quality: Quality, options: FallbackOptions) -> bool:
    """Whether the text repeats itself."""
    most = options.compression_ratio_threshold
    return most is not None and quality.compression_ratio > most


def needs_fallback(quality: Quality, options: FallbackOptions) -> bool:
    """Whether to decode again at the next temperature."""
    unsure = options.logprob_threshold is not None and quality.avg_logprob < options.logprob_threshold
    return (repeats(quality, options) or unsure) and not is_silence(quality, options)


def best(qualities: list[Quality], options: FallbackOptions) -> int:
    """The index of the decoding to keep when all temperatures have failed.

    The likeliest of those that do not repeat themselves; if all do, the one that repeats itself least. (OpenAI keeps
    the last one.)
    """
    sound = [i for i, quality in enumerate(qualities) if not repeats(quality, options)]
    if sound:
        return max(sound, key=lambda i: qualities[i].avg_logprob)
    return min(range(len(qualities)), key=lambda i: qualities[i].compression_ratio)
