"""How long a calibration takes, said before most of it has run."""

import sys
import time
from collections.abc import Callable, Sequence

from tqdm.auto import tqdm
from transformers.utils.logging import is_progress_bar_enabled

from .examples import Example

# Seconds: less is not worth a line.
_WORTH_TELLING = 5


def in_words(seconds: float) -> str:
    """A time as precisely as it can be known: "20 s", "4 min", "2 h 10 min"."""
    if seconds < 55:
        return f"{max(round(seconds / 5) * 5, 1)} s"
    minutes = round(seconds / 60)
    if minutes >= 60:
        tens = round(minutes / 10)
        return f"{tens // 6} h {tens % 6 * 10} min" if tens % 6 else f"{tens // 6} h"
    return f"{max(minutes, 1)} min"


def beside_bars(line: str) -> None:
    """Show a line on standard error, where progress bars are."""
    tqdm.write(line, file=sys.stderr)


class TimeEstimate:
    """Tells once how long a calibration takes, from its first batch and one example taken through what follows.

    Nothing is told, and no example taken, where progress bars are switched off. One example alone takes a GPU more than
    its share of a batch: there it is rather less than what is told.

    Args:
        utterances: windows of audio, all of them.
        passes: over the audio, transcribing included.
        rest: runs what follows over one example.
        share: of what follows, relative to that one example: utterances times what is left of the passes.
        goes_on: it was begun before.
        clock: in seconds.
        say: shows a line.
    """

    def __init__(
        self,
        utterances: int,
        passes: int,
        rest: Callable[[Example], object],
        share: float,
        *,
        goes_on: bool = False,
        clock: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] = beside_bars,
    ):
        self._rest, self._share, self._clock, self._say = rest, share, clock, say
        self._how = ("Calibration goes on", " left") if goes_on else ("Calibration", "")
        self._what = f"{utterances} utterances, {passes} {'passes' if passes > 1 else 'pass'}"
        self._begun, self._is_told = clock(), utterances < 2 or not is_progress_bar_enabled()

    def after_batch(self, examples: Sequence[Example], is_typical: bool, left: int) -> None:
        """To be called when a batch of examples is made.

        Args:
            examples: of the batch.
            is_typical: as much is to be done with those that are left.
            left: utterances of which no examples are made yet.
        """
        now = self._clock()
        seconds, self._begun = now - self._begun, now
        if self._is_told or not is_typical:
            return
        self._is_told = True
        self._rest(examples[0])
        rest = self._clock() - now
        total = seconds / len(examples) * left + rest * self._share
        if total >= _WORTH_TELLING:
            begin, end = self._how
            self._say(f"{begin}: {self._what}, about {in_words(total)}{end} on this machine")


__all__ = ["TimeEstimate", "in_words"]
