"""int8 weights as a quantization method of Transformers: `from_pretrained(…, quantization_config=Int8WeightsConfig())`.

Linear layers of encoder and decoder and the vocabulary projection become [`Int8Linear`]. What makes or reads latents
(`k_proj`, `v_proj`, down projections) stays as it is, so that decoding goes on in the absorbed form.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from .int8_linear import ON_CPU_ONLY, Int8Linear, missing_kernel

METHOD = "whisper_mla_int8"
_OF_LATENTS = ("k_proj", "v_proj", "kv_down_proj")


class Int8WeightsConfig(QuantizationConfigMixin):
    """Says that linear weights are held in 8 bits; nothing about it can be chosen.

    Saved in config.json, so that a checkpoint saved with such weights is loaded with them.
    """

    def __init__(self, quant_method: str = METHOD, **kwargs):
        self.quant_method: Any = quant_method


class Int8WeightsQuantizer(HfQuantizer):
    """Replaces linear layers: before loading in a checkpoint saved so, else after loading floating-point weights."""

    def validate_environment(self, *args, device_map: Any = None, **kwargs):
        """Raise before anything is loaded where it could not run; see [`check_int8_weights`]."""
        check_int8_weights(device_map.values() if isinstance(device_map, dict) else [device_map])

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return torch.float32  # of what is not rounded, and of all in between

    def update_device_map(self, device_map):
        return {"": "cpu"} if device_map == "auto" else device_map

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs):
        if self.pre_quantized:
            replace_linears(model)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs):
        if not self.pre_quantized:
            replace_linears(model)
        return model.requires_grad_(False)

    def is_serializable(self, *args, **kwargs) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def quantize_weights(model: PreTrainedModel) -> PreTrainedModel:
    """Give a model in memory int8 weights, as `from_pretrained(…, quantization_config=Int8WeightsConfig())` does.

    Args:
        model: a Whisper-MLA model in float32 on the CPU. It is changed.

    Returns:
        PreTrainedModel: `model`, which saves and loads so.

    Raises:
        ValueError: it is on another device, in another dtype, or quantised already.
        RuntimeError: PyTorch has no kernel for it.
    """
    if getattr(model, "hf_quantizer", None) is not None:
        raise ValueError(f"model: its weights are quantised already ({model.quantization_method}).")
    check_int8_weights([model.device])
    if model.dtype != torch.float32:
        raise ValueError(f"model in {model.dtype}: int8 weights go with float32. Call model.float() before.")
    quantizer = Int8WeightsQuantizer(Int8WeightsConfig(), pre_quantized=False)
    quantizer.preprocess_model(model)
    model.hf_quantizer = quantizer  # type: ignore[assignment]
    quantizer.postprocess_model(model)
    return model


def check_int8_weights(devices: Iterable[Any] = ()) -> None:
    """Raise unless int8 weights can run.

    Args:
        devices: where the model is to be, or None for the default.

    Raises:
        ValueError: on another device than the CPU.
        RuntimeError: PyTorch has no kernel for it.
    """
    elsewhere = sorted({str(device) for device in devices} - {"None", "cpu", "auto"})
    if elsewhere:
        raise ValueError(f"device {', '.join(elsewhere)}: {ON_CPU_ONLY}")
    missing = missing_kernel()
    if missing is not None:
        raise RuntimeError(f"int8 weights: {missing}. Load the model without them.")


def replace_linears(model: PreTrainedModel) -> None:
    """Put an [`Int8Linear`] in the place of every `nn.Linear` that latents do not pass through."""
    for parent_name, parent in list(model.named_modules()):
        for name, child in list(parent.named_children()):
            # Not by its class: a checkpoint's own copy of the code has another one of the same name.
            of_latents = hasattr(parent, "uses_absorbed_form") and name in _OF_LATENTS
            if type(child) is nn.Linear and not of_latents and name != "cross_kv_down_proj":
                many_rows = "encoder" in parent_name.split(".")
                setattr(parent, name, _replacement(child, many_rows))
    # The vocabulary projection is rounded and the embedding is not: no longer one matrix.
    model.config.tie_word_embeddings = False
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.all_tied_weights_keys = {}


def _replacement(linear: nn.Linear, many_rows: bool) -> Int8Linear:
    if linear.weight.device.type != "meta":
        return Int8Linear.from_linear(linear, many_rows)
    with torch.device("meta"):
        return Int8Linear(linear.in_features, linear.out_features, linear.bias is not None, many_rows)


def register_int8_weights() -> None:
    """Make Transformers know the method. Calling it again changes nothing."""
    AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault(METHOD, Int8WeightsConfig)
    AUTO_QUANTIZER_MAPPING.setdefault(METHOD, Int8WeightsQuantizer)


__all__ = [
    "Int8WeightsConfig",
    "Int8WeightsQuantizer",
    "check_int8_weights",
    "quantize_weights",
    "register_int8_weights",
]
