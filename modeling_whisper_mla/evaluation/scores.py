"""From transcripts to error rates by dataset and language, and to comparisons of two models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from .hallucinations import HallucinationGuard, guard
from .intervals import bootstrap_interval, compare_paired
from .normalizers import Normalizer
from .utterance_results import UtteranceResult
from .word_errors import ErrorCounts, count_character_errors, count_word_errors, total


@dataclass(frozen=True)
class ScoredUtterance:
    """A transcript with its errors, after normalisation."""

    result: UtteranceResult
    words: ErrorCounts
    characters: ErrorCounts
    hallucination: HallucinationGuard


def score_utterances(
    results: Sequence[UtteranceResult], normalizer_of: Callable[[str | None], Normalizer]
) -> list[ScoredUtterance]:
    """Count the errors of each transcript. Utterances whose audio could not be read are left out.

    Args:
        results: of one model.
        normalizer_of: the normaliser of a language, for references and hypotheses alike.

    Returns:
        list[ScoredUtterance]: in order.

    Raises:
        ValueError: no audio could be read at all.
    """
    readable = [result for result in results if result.hypothesis is not None]
    if not readable:
        first = results[0].error if results else "there is none"
        raise ValueError(f"None of the {len(results)} audio files could be read; the first: {first}")
    normalizers = {result.language: normalizer_of(result.language) for result in readable}
    words, characters = [], []
    for result in readable:
        normalizer = normalizers[result.language]
        pair = (result.reference, result.hypothesis or "")
        words.append(tuple(normalizer.words(text) for text in pair))
        characters.append(tuple(normalizer.characters(text) for text in pair))
    word_errors = count_word_errors(*zip(*words, strict=True))
    character_errors = count_character_errors(*zip(*characters, strict=True))
    guards = [guard(reference, hypothesis) for reference, hypothesis in words]
    return [ScoredUtterance(*parts) for parts in zip(readable, word_errors, character_errors, guards, strict=True)]


def summarise(scored: Sequence[ScoredUtterance], **bootstrap) -> dict:
    """Error rates of a set of utterances, as JSON values.

    Args:
        scored: at least one utterance.
        bootstrap: confidence, resamples and seed of `bootstrap_interval`.

    Returns:
        dict: counts, WER with its interval and CER (ratios; None without a reference word), length ratio, hallucination
        flags, seconds of audio and of processing (summed over processes) and their ratio, the real-time factor.
    """
    words, characters = total(one.words for one in scored), total(one.characters for one in scored)
    interval = None
    if words.reference_length:
        errors, lengths = _errors(scored), [one.words.reference_length for one in scored]
        interval = bootstrap_interval(errors, lengths, **bootstrap)
    audio = sum(one.result.audio_seconds for one in scored)
    processing = sum(one.result.processing_seconds for one in scored)
    return {
        "utterances": len(scored),
        "words": words.reference_length,
        "wer": words.rate,
        "wer_interval": [interval.low, interval.high] if interval else None,
        "substitutions": words.substitutions,
        "deletions": words.deletions,
        "insertions": words.insertions,
        "cer": characters.rate,
        "characters": characters.reference_length,
        "length_ratio": words.hypothesis_length / words.reference_length if words.reference_length else None,
        "too_long": sum(one.hallucination.is_too_long for one in scored),
        "looping": sum(one.hallucination.is_looping for one in scored),
        "suspect": sum(one.hallucination.is_suspect for one in scored),
        "repeated_ngrams": sum(one.hallucination.repeated_ngrams for one in scored),
        "audio_seconds": audio,
        "processing_seconds": processing,
        "real_time_factor": processing / audio,
    }


def summarise_groups(scored: Sequence[ScoredUtterance], **bootstrap) -> dict:
    """`summarise` of everything, of each dataset, of each language, and of each language of each dataset.

    Rates are pooled: errors and words are summed over the group first. Over languages written without spaces, letters
    and words are added up, so compare `overall` only between models on the same data.

    Args:
        scored: of one model.
        bootstrap: as of `summarise`.

    Returns:
        dict: `overall`; `datasets` by name, each with its `languages`; `languages` by code ("unknown" for None).
    """

    def languages(part: Sequence[ScoredUtterance]) -> dict:
        groups = _group(part, lambda one: one.result.language or "unknown")
        return {code: summarise(group, **bootstrap) for code, group in groups.items()}

    datasets = _group(scored, lambda one: one.result.dataset)
    return {
        "overall": summarise(scored, **bootstrap),
        "datasets": {
            name: {**summarise(group, **bootstrap), "languages": languages(group)} for name, group in datasets.items()
        },
        "languages": languages(scored),
    }


def compare_models(first: Sequence[ScoredUtterance], second: Sequence[ScoredUtterance], **bootstrap) -> dict:
    """Paired comparison of word error rates on the utterances that both models transcribed.

    Args:
        first, second: the models' scores on the same utterances.
        bootstrap: confidence, resamples and seed of `compare_paired`.

    Returns:
        dict: `overall`, and `datasets` by name: fields of `PairedComparison` as JSON values, `same_transcripts`
        (utterances whose transcripts are equal before normalisation) and `utterances`.

    Raises:
        ValueError: no utterance in common, or its reference differs.
    """
    by_index = {one.result.index: one for one in second}
    pairs = [(one, by_index[one.result.index]) for one in first if one.result.index in by_index]
    if not pairs:
        raise ValueError("The two models have no utterance in common.")
    for one, other in pairs:
        if (one.result.id, one.words.reference_length) != (other.result.id, other.words.reference_length):
            raise ValueError(f"{one.result.id}: the two models were not evaluated on the same utterance.")

    def compare(part: list[tuple[ScoredUtterance, ScoredUtterance]]) -> dict:
        own, others = zip(*part, strict=True)
        lengths = [one.words.reference_length for one in own]
        paired = asdict(compare_paired(_errors(own), _errors(others), lengths, **bootstrap)) if sum(lengths) else {}
        same = sum(one.result.hypothesis == other.result.hypothesis for one, other in part)
        return {**paired, "same_transcripts": same, "utterances": len(part)}

    datasets = _group(pairs, lambda pair: pair[0].result.dataset)
    return {"overall": compare(pairs), "datasets": {name: compare(part) for name, part in datasets.items()}}


def _errors(scored: Sequence[ScoredUtterance]) -> list[int]:
    return [one.words.errors for one in scored]


def _group(items, key: Callable) -> dict[str, list]:
    groups: dict[str, list] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
