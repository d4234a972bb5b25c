"""What language and task a model can be told, and what it does when it isn't told."""

from transformers import GenerationConfig
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE


def language_ids(generation: GenerationConfig) -> dict[str, int]:
    """Code to token id of the languages a model has; empty for an English-only model."""
    if not getattr(generation, "is_multilingual", True):
        return {}
    return {name.strip("<|>"): token for name, token in (getattr(generation, "lang_to_id", None) or {}).items()}


def check_language(generation: GenerationConfig, language: str | None, task: str | None = None) -> str | None:
    """Refuse a language or task that a model does not have.

    Args:
        generation: the model's generation config.
        language: a name or code in any case; None: the model's choice.
        task: "transcribe", "translate" or None.

    Returns:
        str | None: the language's code; None where the model is to be told nothing.

    Raises:
        ValueError: a language or task that the model does not have, or that its generation config does not list.
    """
    if not getattr(generation, "is_multilingual", True):
        if (language or "en").lower() not in ("en", "english") or task == "translate":
            raise ValueError(f"language={language!r}, task={task!r}: this model only transcribes English.")
        return None
    for name, given, field in (("language", language, "lang_to_id"), ("task", task, "task_to_id")):
        if given is not None and not getattr(generation, field, None):
            raise ValueError(
                f"{name}={given!r}: the model's generation config has no {field}, which says what token that is. "
                "Convert the original checkpoint with `whisper-mla convert`, which fills it in, or take "
                "generation_config.json from a checkpoint of the same size and kind."
            )
    if language is None:
        return None
    code, known = TO_LANGUAGE_CODE.get(language.lower(), language.lower()), language_ids(generation)
    if code not in known:
        raise ValueError(f"language={language!r}: the model does not have it. It has: {', '.join(sorted(known))}.")
    return code


def default_language(generation: GenerationConfig) -> str | None:
    """The language that a model assumes when it isn't told, as a code; None: it has to detect it, or has only one."""
    known = language_ids(generation)
    language = getattr(generation, "language", None)
    if isinstance(language, str):
        code = TO_LANGUAGE_CODE.get(language.lower(), language.lower().strip("<|>"))
        return code if code in known else None
    # Older configs name the tokens that come first.
    forced = dict(getattr(generation, "forced_decoder_ids", None) or [])
    return next((code for code, token in known.items() if token == forced.get(1)), None)


def default_task(generation: GenerationConfig) -> str:
    """The task of a model that isn't told any."""
    task = getattr(generation, "task", None)
    if task is not None:
        return task
    forced = dict(getattr(generation, "forced_decoder_ids", None) or [])
    tasks = getattr(generation, "task_to_id", None) or {}
    return next((name for name, token in tasks.items() if token in forced.values()), "transcribe")
