"""How sure a word error rate is: the bootstrap over utterances (Bisani and Ney, ICASSP 2004)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

_VALUES_AT_ONCE = 1 << 22  # resampled indices in memory at a time


@dataclass(frozen=True)
class Interval:
    """An error rate and its percentile bootstrap interval, as ratios.

    Attributes:
        estimate: errors per reference token of the utterances as they are.
        low, high: the bounds.
    """

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedComparison:
    """Two models on the same utterances.

    Attributes:
        difference: error rate of the second minus that of the first, a ratio; negative if the second is better.
        low, high: its percentile bootstrap interval.
        probability_of_improvement: share of resamples in which the second is better, ties counted half.
        p_value: two-sided: twice the smaller share of resamples in which the difference is on one side of zero or zero,
            at most 1. 1 if no resample differs.
        better, worse, equal: utterances on which the second makes fewer, more and as many errors.
    """

    difference: float
    low: float
    high: float
    probability_of_improvement: float
    p_value: float
    better: int
    worse: int
    equal: int


def bootstrap_interval(
    errors: Sequence[int], lengths: Sequence[int], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Confidence interval of a pooled error rate.

    Utterances are drawn with replacement, as many as there are. They are taken as independent; utterances of one
    speaker are not quite, and few speakers make the true interval wider.

    Args:
        errors: `[utterances]`, edits of each utterance.
        lengths: `[utterances]`, reference tokens of each.
        confidence: coverage, between 0 and 1.
        resamples: draws. Those without a reference token have no rate and are left out.
        seed: of the draws; the same seed gives the same interval.

    Returns:
        Interval: `sum(errors) / sum(lengths)` and the percentiles of its resamples.

    Raises:
        ValueError: no reference token, lists of unequal length, negative counts, or an argument out of range.
    """
    counts = np.stack([_counts("errors", errors), _counts("lengths", lengths, len(errors))])
    low, high = _tails(confidence, resamples)
    estimate = _rates(counts.sum(axis=1, keepdims=True).T)
    if not len(estimate):
        raise ValueError("lengths: no reference token in any utterance, so there is no error rate.")
    samples = np.concatenate([_rates(sums) for sums in _resampled_sums(counts, resamples, seed)])
    bounds = np.quantile(samples, [low, high])
    return Interval(float(estimate[0]), float(bounds[0]), float(bounds[1]))


def compare_paired(
    first: Sequence[int],
    second: Sequence[int],
    lengths: Sequence[int],
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedComparison:
    """Paired bootstrap of two models' error rates: both are evaluated on the same draws of utterances.

    What the utterances have in common cancels, so that a difference far smaller than either model's own interval can be
    certain.

    Args:
        first, second: `[utterances]`, edits of each model on each utterance.
        lengths: `[utterances]`, reference tokens.
        confidence, resamples, seed: as of `bootstrap_interval`.

    Returns:
        PairedComparison: of the second against the first. A model compared with itself differs by exactly 0.

    Raises:
        ValueError: as of `bootstrap_interval`.
    """
    counts = np.stack(
        [_counts("first", first), _counts("second", second, len(first)), _counts("lengths", lengths, len(first))]
    )
    low, high = _tails(confidence, resamples)
    change = counts[1] - counts[0]
    counts = np.stack([change, counts[2]])
    estimate = _rates(counts.sum(axis=1, keepdims=True).T)
    if not len(estimate):
        raise ValueError("lengths: no reference token in any utterance, so there is no error rate.")
    samples = np.concatenate([_rates(sums) for sums in _resampled_sums(counts, resamples, seed)])
    bounds = np.quantile(samples, [low, high])
    at_most, at_least = (samples <= 0).mean(), (samples >= 0).mean()
    return PairedComparison(
        difference=float(estimate[0]),
        low=float(bounds[0]),
        high=float(bounds[1]),
        probability_of_improvement=float((samples < 0).mean() + (samples == 0).mean() / 2),
        p_value=float(min(1.0, 2 * min(at_most, at_least))),
        better=int((change < 0).sum()),
        worse=int((change > 0).sum()),
        equal=int((change == 0).sum()),
    )


def _counts(name: str, values: Sequence[int], length: int | None = None) -> np.ndarray:
    counts = np.asarray(values, dtype=np.int64)
    if counts.ndim != 1 or (length is not None and len(counts) != length):
        raise ValueError(f"{name}: {counts.size} values, expected one for each of the {length} utterances.")
    if (counts < 0).any():
        raise ValueError(f"{name}: holds a negative count.")
    return counts


def _tails(confidence: float, resamples: int) -> tuple[float, float]:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: expected a number between 0 and 1, such as 0.95.")
    if resamples < 1:
        raise ValueError(f"resamples={resamples}: expected at least 1.")
    return (1 - confidence) / 2, (1 + confidence) / 2


def _resampled_sums(counts: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Sums `[draws, rows]` of `counts` `[rows, utterances]` over utterances drawn with replacement."""
    generator, utterances = np.random.default_rng(seed), counts.shape[1]
    step = max(1, _VALUES_AT_ONCE // utterances)
    for start in range(0, resamples, step):
        draws = generator.integers(utterances, size=(min(step, resamples - start), utterances))
        yield np.stack([row[draws].sum(axis=1) for row in counts], axis=1)


def _rates(sums: np.ndarray) -> np.ndarray:
    """Errors per token of `[draws, (errors, tokens)]`, without the draws that have no token."""
    sums = sums[sums[:, 1] > 0]
    return sums[:, 0] / sums[:, 1]
