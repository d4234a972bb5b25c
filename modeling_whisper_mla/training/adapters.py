"""LoRA and DoRA on the latent projections, for accelerators with little memory."""

from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from whisper_mla.freezing import latent_projections


def add_adapters(model: PreTrainedModel, **lora: Any) -> PeftModel:
    """Put adapters on the down and up projections of the latents; nothing else trains.

    While adapters are on, attention runs in the expanded form, which is slow to decode with: merge them first
    (`merge_and_unload`).

    Args:
        model: a converted model with a rank below `d_model`; its modules are replaced in place.
        lora: of PEFT's `LoraConfig`: `r`, `lora_alpha`, `lora_dropout`, `use_dora`, ….

    Returns:
        PeftModel: around `model`.

    Raises:
        ValueError: no latent projection, or an argument that `LoraConfig` does not have.
    """
    names = latent_projections(model)
    if not names:
        raise ValueError("adapter: this model has no latent of a rank below d_model. Give conversion a kv_rank.")
    try:
        config = LoraConfig(target_modules=names, **lora)
    except TypeError as error:
        raise ValueError(f"adapter={lora!r}: {error}.") from error
    return get_peft_model(model, config)
