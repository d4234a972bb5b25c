"""Decode windows of audio in batches, with fallback to higher temperatures."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from .alignment import token_end_times
from .fallback import FallbackOptions, Quality, best, compression_ratio, is_silence, needs_fallback
from .languages import default_task, language_ids
from .length import length_arguments
from .timestamp_tokens import timestamp_tokens

FRAMES_PER_SECOND = 100


@dataclass(frozen=True)
class Window:
    """A stretch of audio that fits the model.

    Attributes:
        features: log-mel `[mel bins, frames]`, as many frames as the model takes.
        seconds: of audio in it; the rest is padding.
        language: Whisper's code; None: to be detected.
        with_timestamps: whether the model is to mark times.
        previous: tokens of the text before, to condition on.
    """

    features: Tensor
    seconds: float
    language: str | None
    with_timestamps: bool
    previous: tuple[int, ...] = ()


@dataclass(frozen=True)
class Decoding:
    """What the model made of a window.

    Attributes:
        tokens: generated, without the end token.
        language: told or detected; None for a model of one language.
        quality: of this decoding.
        is_silence: to be skipped: the window holds no speech.
        fell_back: whether it was decoded more than once.
        ends: seconds at which each of `tokens` ends, where asked for.
    """

    tokens: list[int]
    language: str | None
    quality: Quality
    is_silence: bool = False
    fell_back: bool = False
    ends: tuple[float, ...] = ()


class WindowDecoder:
    """A model with the way it is asked.

    Args:
        model: a stock Whisper or a Whisper-MLA model in evaluation mode.
        tokenizer: of the model.
        options: temperatures and thresholds.
        task: "transcribe" or "translate"; None: the model's default.
        num_beams: at temperature 0; 1 for greedy decoding.
        with_token_times: whether to find out when each token was spoken.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        options: FallbackOptions,
        task: str | None = None,
        num_beams: int = 1,
        with_token_times: bool = False,
    ):
        self.model, self.tokenizer, self.options = model, tokenizer, options
        self.num_beams, self.with_token_times = num_beams, with_token_times
        generation = model.generation_config
        self.times = timestamp_tokens(generation)
        self.languages = language_ids(generation)
        has_tasks = bool(self.languages) and bool(getattr(generation, "task_to_id", None))
        self.task = (task or default_task(generation)) if has_tasks else None

    @torch.inference_mode()
    def __call__(self, windows: list[Window]) -> list[Decoding]:
        """Decode windows together. What comes out does not depend on which others are in the batch, but for rounding.

        Args:
            windows: one or more.

        Returns:
            list[Decoding]: in order.
        """
        encoder = self.model.get_encoder()
        features = torch.stack([window.features for window in windows]).to(self.model.device, self.model.dtype)
        encoded = encoder(features).last_hidden_state
        windows, silence = self._listen(windows, encoded)
        decodings: list[Decoding | None] = [None] * len(windows)
        for rows in _alike(windows):
            tried = self._generate([windows[row] for row in rows], encoded[rows], self.options.temperatures[0])
            for row, first in zip(rows, tried, strict=True):
                decodings[row] = self._settle(windows[row], encoded[row : row + 1], first, silence[row])
        return [decoding for decoding in decodings if decoding is not None]

    def _listen(self, windows: list[Window], encoded: Tensor) -> tuple[list[Window], list[float | None]]:
        """Windows with their languages, and how probable it is that there is no speech."""
        to_detect = [bool(self.languages) and window.language is None for window in windows]
        asks_silence = self.options.no_speech_threshold is not None and self.times is not None
        if not any(to_detect) and not asks_silence:
            return windows, [None] * len(windows)
        start = self.model.generation_config.decoder_start_token_id
        logits = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
            decoder_input_ids=torch.full((len(windows), 1), start, device=encoded.device),
            use_cache=False,
        ).logits[:, -1]
        if any(to_detect):
            codes, ids = zip(*self.languages.items(), strict=True)
            choices = logits[:, list(ids)].argmax(dim=-1).tolist()
            windows = [
                replace(window, language=codes[choice]) if detect else window
                for window, choice, detect in zip(windows, choices, to_detect, strict=True)
            ]
        if self.times is None or not asks_silence:
            return windows, [None] * len(windows)
        no_speech = self.times.first - 2  # <|nospeech|> comes before <|notimestamps|>
        return windows, logits.float().softmax(dim=-1)[:, no_speech].tolist()

    def _settle(self, window: Window, encoded: Tensor, first: "_Generated", no_speech: float | None) -> Decoding:
        """Try further temperatures where the first decoding failed; alone, so that no neighbour changes the draw."""
        tried = [(first, self._quality(first, self.options.temperatures[0], no_speech))]
        for temperature in self.options.temperatures[1:]:
            if not needs_fallback(tried[-1][1], self.options):
                break
            again = self._generate([window], encoded, temperature)[0]
            tried.append((again, self._quality(again, temperature, no_speech)))
        choice = -1
        if len(tried) > 1 and needs_fallback(tried[-1][1], self.options):
            choice = best([quality for _, quality in tried], self.options)
        generated, quality = tried[choice]
        silent = is_silence(quality, self.options)
        end = self.model.generation_config.eos_token_id
        tokens = generated.tokens[:-1] if generated.tokens[-1:] == [end] else generated.tokens
        ends: list[float] = []
        if self.with_token_times and not silent:
            ends = token_end_times(self.model, encoded, generated.prompt, generated.tokens, window.seconds)
        return Decoding(tokens, window.language, quality, silent, len(tried) > 1, tuple(ends[: len(tokens)]))

    def _quality(self, generated: "_Generated", temperature: float, no_speech: float | None) -> Quality:
        spoken = [token for token in generated.tokens if self.times is None or token not in self.times]
        text = str(self.tokenizer.decode(spoken, skip_special_tokens=True)).strip()
        return Quality(temperature, generated.avg_logprob, compression_ratio(text), no_speech)

    def _generate(self, windows: list[Window], encoded: Tensor, temperature: float) -> list["_Generated"]:
        """Generate for windows that are asked alike."""
        model, generation = self.model, self.model.generation_config
        arguments: dict = length_arguments(model)
        if windows[0].language is not None and self.languages:
            arguments["language"] = [f"<|{window.language}|>" for window in windows]
        if self.task is not None:
            arguments["task"] = self.task
        if windows[0].previous:
            arguments["prompt_ids"] = torch.tensor(windows[0].previous, device=encoded.device)
        beams = self.num_beams if temperature == 0 else 1
        likelihood = ChosenLogprobs()
        if beams > 1 or getattr(generation, "logprob_threshold", None) is not None:
            arguments["logprob_threshold"] = float("-inf")  # keeps the scores of the beams; nothing is below
        if beams == 1:
            arguments["logits_processor"] = [likelihood]
        if temperature > 0:
            arguments |= {"do_sample": True, "top_k": 0}
        with _seeded(encoded.device) if temperature > 0 else nullcontext():
            output = model.generate(  # type: ignore[operator]
                encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
                return_timestamps=windows[0].with_timestamps,
                temperature=temperature,
                num_beams=beams,
                return_segments=True,
                force_unique_generate_call=True,
                **arguments,
            )
        found = []
        for row, segments in enumerate(output["segments"]):
            result, length = segments[0]["result"], segments[0]["idxs"][0]
            sequence = result["sequences"] if isinstance(result, dict) else result
            tokens = _until_end(sequence[length:].tolist(), generation.eos_token_id)
            logprob = float(result["sequences_scores"]) if beams > 1 else likelihood.mean(row, tokens)
            found.append(_Generated(sequence[:length].tolist(), tokens, logprob))
        return found


@contextmanager
def _seeded(device: torch.device) -> Iterator[None]:
    """Random numbers from a fixed seed, for one thread at a time: all draw from one generator, left as it was."""
    with _one_draws, torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield


_one_draws = threading.Lock()


@dataclass(frozen=True)
class _Generated:
    prompt: list[int]
    tokens: list[int]
    avg_logprob: float


class ChosenLogprobs(LogitsProcessor):
    """Remembers how probable each token was, after all rules of the model and before any temperature."""

    def __init__(self):
        self.logprobs: list[Tensor] = []
        self.last: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.last is not None:
            self.logprobs.append(self.last.gather(-1, input_ids[:, -1:])[:, 0])
        self.last = scores.float().log_softmax(dim=-1)
        return scores

    def mean(self, row: int, tokens: list[int]) -> float:
        """Over the `tokens` generated for a row, of which the end token is one."""
        if self.last is None or not tokens:
            return 0.0
        known = [float(step[row]) for step in self.logprobs[: len(tokens)]]
        if len(known) < len(tokens):
            known.append(float(self.last[row, tokens[len(known)]]))
        return sum(known) / len(tokens)


def _until_end(tokens: list[int], end: int) -> list[int]:
    """Tokens up to and with the end token; what follows is padding."""
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


def _alike(windows: list[Window]) -> list[list[int]]:
    """Indices of windows that one call can decode: with or without times, after the same text."""
    groups: dict[tuple, list[int]] = {}
    for index, window in enumerate(windows):
        groups.setdefault((window.with_timestamps, window.previous), []).append(index)
    return list(groups.values())
