"""The options of temperatures and thresholds, which several commands have."""

from typing import Annotated

import typer

from whisper_mla.transcription.fallback import FallbackOptions

TEMPERATURES, COMPRESSION_RATIO, LOGPROB, NO_SPEECH = "0,0.2,0.4,0.6,0.8,1", "2.4", "-1", "0.6"

Temperatures = Annotated[
    str, typer.Option(help="Tried in turn where a window repeats itself or is unsure; 0 alone: no fallback.")
]
CompressionRatioThreshold = Annotated[str, typer.Option(help="Above it text repeats itself; or none.")]
LogprobThreshold = Annotated[str, typer.Option(help="Below it the model is unsure; or none.")]
NoSpeechThreshold = Annotated[str, typer.Option(help="Above it an unsure window is skipped; or none.")]
ConditionOnPrevTokens = Annotated[
    bool,
    typer.Option("--condition-on-prev-tokens", help="Decode each window after the text before it."),
]


def parse(
    temperatures: str, compression_ratio: str, logprob: str, no_speech: str, condition_on_prev_tokens: bool
) -> FallbackOptions:
    """What was given on the command line.

    Raises:
        typer.BadParameter: not numbers, or out of range; names the option.
    """
    try:
        return FallbackOptions(
            tuple(_number("--temperatures", part) for part in temperatures.split(",")),
            _threshold("--compression-ratio-threshold", compression_ratio),
            _threshold("--logprob-threshold", logprob),
            _threshold("--no-speech-threshold", no_speech),
            condition_on_prev_tokens,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _threshold(option: str, text: str) -> float | None:
    return None if text.strip().lower() == "none" else _number(option, text)


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{option} {text!r}: expected a number, or none for a threshold.") from None
