"""How fast models decode, stock beside converted: in fresh processes, round by round, medians and paired ratios."""

import dataclasses
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from transformers import WhisperConfig

from .fresh_process import OUT_OF_MEMORY, run_fresh
from .memory import stock_and_latent

STOCK = "stock"


@dataclass(frozen=True)
class SpeedSetting:
    """How a model is asked.

    Attributes:
        batch_size: audios decoded at once.
        tokens: decoded by every hypothesis, after the start token.
        num_beams: hypotheses per audio.
    """

    batch_size: int = 1
    tokens: int = 64
    num_beams: int = 1


@dataclass(frozen=True)
class Candidate:
    """A model that takes part.

    Attributes:
        name: as it is shown.
        config: stock or Whisper-MLA.
        int8_weights: give it int8 weights.
        compiled: compile its steps.
    """

    name: str
    config: WhisperConfig
    int8_weights: bool = False
    compiled: bool = False


@dataclass
class Timed:
    """What was measured of a model at a setting.

    Attributes:
        milliseconds: per token, of each round.
        reason: why there are none ("out of memory"), or None.
    """

    milliseconds: list[float] = field(default_factory=list)
    reason: str | None = None

    @property
    def median(self) -> float | None:
        return statistics.median(self.milliseconds) if self.milliseconds and not self.reason else None


Table = dict[str, dict[SpeedSetting, Timed]]


def candidates(
    config: WhisperConfig, positions: int, int8_weights: bool = False, compiled: bool = False
) -> list[Candidate]:
    """The models to compare, stock first.

    Args:
        config: of a stock or Whisper-MLA model.
        positions: text positions that all must have, extended where there are fewer.
        int8_weights: also with int8 weights; they go with float32 on a CPU.
        compiled: also converted ones with compiled steps.
    """
    found = [Candidate(name, one) for name, one in stock_and_latent(config, positions).items()]
    converted = next(one for one in found if one.name != STOCK)
    if int8_weights:
        found.append(dataclasses.replace(converted, name=f"{converted.name}, int8 weights", int8_weights=True))
    if compiled:
        faster = [converted, *(one for one in found if one.int8_weights)]
        found += [dataclasses.replace(one, name=f"{one.name}, compiled", compiled=True) for one in faster]
    return found


def measure_speed(
    models: list[Candidate],
    settings: list[SpeedSetting],
    dtype: str,
    rounds: int = 3,
    device: str = "cpu",
    seconds: float = 600.0,
    shown: Callable[[list], Iterable] = iter,
) -> Table:
    """Time all models at all settings: in every round one fresh process per model, in turns forwards and backwards.

    Args:
        models: of [`candidates`].
        settings: what each of them is asked.
        dtype: "float32", "float16" or "bfloat16".
        rounds: how often.
        device: as torch writes it.
        seconds: after which a process is ended: it answers all settings once.
        shown: wraps the list of turns, to show progress.

    Returns:
        dict: by the model's name and the setting. A setting for which memory or time did not suffice has a reason and
        is not tried again; the others are.

    Raises:
        RuntimeError: a process failed of anything else.
    """
    table: Table = {model.name: {setting: Timed() for setting in settings} for model in models}
    turns = [model for number in range(rounds) for model in (models if number % 2 == 0 else models[::-1])]
    for model in shown(turns):
        answers = table[model.name]
        waiting = [setting for setting in settings if answers[setting].reason is None]
        while waiting:
            job = {
                **dataclasses.asdict(model),
                "config": model.config.to_dict(),
                "settings": [dataclasses.astuple(setting) for setting in waiting],
                "dtype": dtype,
                "device": device,
            }
            found, reason = run_fresh("whisper_mla.evaluation.speed_process", job, seconds)
            for setting, answer in zip(waiting, found, strict=False):
                if answer["milliseconds"] is None:
                    answers[setting].reason = OUT_OF_MEMORY
                else:
                    answers[setting].milliseconds.append(answer["milliseconds"])
            waiting = waiting[len(found) :]
            if reason is not None and waiting:
                answers[waiting.pop(0)].reason = reason
    return table


def speed_ups(table: Table) -> dict[str, dict[SpeedSetting, float | None]]:
    """Stock's time by each model's, the median of the ratios of rounds; None where either has none."""
    found: dict[str, dict[SpeedSetting, float | None]] = {}
    for name, answers in table.items():
        found[name] = {}
        for setting, timed in answers.items():
            stock = table[STOCK][setting]
            pairs = zip(stock.milliseconds, timed.milliseconds, strict=False)
            both = stock.median is not None and timed.median is not None
            found[name][setting] = statistics.median(a / b for a, b in pairs) if both else None
    return found
