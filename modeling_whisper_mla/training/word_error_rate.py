"""The word error rate by which the best checkpoint is chosen."""

from collections.abc import Callable

import numpy as np
from transformers import EvalPrediction, WhisperTokenizer

from whisper_mla.evaluation.normalizers import normalizer_for
from whisper_mla.evaluation.word_errors import ErrorCounts, count_word_errors, total

from .losses import IGNORED


def word_error_metric(tokenizer: WhisperTokenizer, normalizer: str = "auto") -> Callable[[EvalPrediction], dict]:
    """A `compute_metrics` for `predict_with_generate`.

    Args:
        tokenizer: of the checkpoint.
        normalizer: as for `normalizer_for`; "auto" goes by the language that an utterance's labels begin with.

    Returns:
        A function from predictions to `{"wer": percent}` over all utterances together; with several languages also
        `"wer_<language>"` of each.

    Raises:
        ValueError: an unknown normaliser.
    """
    spelling = getattr(tokenizer, "english_spelling_normalizer", None)
    normalizer_for(None, normalizer, spelling)

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        counts: dict[str, list[ErrorCounts]] = {}
        for labels, tokens in zip(prediction.label_ids, prediction.predictions, strict=True):
            language = str(tokenizer.convert_ids_to_tokens(int(labels[0]))).strip("<|>")
            words = normalizer_for(language, normalizer, spelling).words
            reference, hypothesis = (
                tokenizer.decode(np.where(row == IGNORED, tokenizer.pad_token_id, row), skip_special_tokens=True)
                for row in (labels, tokens)
            )
            counts.setdefault(language, []).extend(count_word_errors([words(reference)], [words(hypothesis)]))
        metrics = {"wer": _percent([count for group in counts.values() for count in group])}
        if len(counts) > 1:
            metrics |= {f"wer_{language}": _percent(group) for language, group in sorted(counts.items())}
        return metrics

    return compute


def _percent(counts: list[ErrorCounts]) -> float:
    rate = total(counts).rate
    if rate is None:
        raise ValueError("the evaluation set has no words after normalisation, so there is no word error rate.")
    return 100 * rate
