"""How long a transcript may become where a checkpoint does not say so."""

from transformers import PreTrainedModel


def length_arguments(model: PreTrainedModel) -> dict[str, int]:
    """Arguments for `generate` so that a transcript is as long as the model can make it.

    Without `generation_config.json`, `generate` would end it silently after 20 tokens.

    Args:
        model: a stock Whisper or a Whisper-MLA model.

    Returns:
        dict: empty where the generation config states a length.
    """
    generation = model.generation_config
    if generation.max_length is None and generation.max_new_tokens is None:
        return {"max_length": model.config.max_target_positions}
    return {}
