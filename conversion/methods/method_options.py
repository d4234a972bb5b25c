"""Which keyword arguments belong to a factorisation method, and which to loading the source."""

import inspect
from typing import Any

from transformers import PreTrainedModel, WhisperConfig

from . import METHODS

# What `from_pretrained` takes besides its signature and the fields of the configuration.
_LOADING = (
    "_commit_hash _fast_init adapter_kwargs adapter_name allow_all_kernels attn_implementation device_map "
    "device_mesh distributed_config dtype experts_implementation from_flax from_tf generation_config gguf_file "
    "kernel_config key_mapping low_cpu_mem_usage max_memory mirror offload_buffers offload_folder "
    "offload_state_dict output_loading_info proxies quantization_config state_dict subfolder torch_dtype tp_plan "
    "tp_size tqdm_class trust_remote_code use_kernels variant"
)


def options_of(method: str) -> list[str]:
    """Names of the options of a method of `METHODS`."""
    parameters = inspect.signature(METHODS[method]).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]


def method_options(method: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Take the options of a method out of keyword arguments.

    Args:
        method: of `METHODS`.
        arguments: changed in place: what the method knows is removed, arguments of `from_pretrained` and fields of the
            configuration remain.

    Raises:
        ValueError: an argument that is none of these, such as an option of another method.
    """
    names = options_of(method)
    options = {name: arguments.pop(name) for name in names if name in arguments}
    loading = {*_LOADING.split(), *inspect.signature(PreTrainedModel.from_pretrained).parameters}
    fields = WhisperConfig()
    for name, value in arguments.items():
        if name in loading or hasattr(fields, name):
            continue
        others = [other for other in METHODS if name in options_of(other)]
        belongs = f" It is an option of {' and '.join(map(repr, others))}." if others else ""
        known = ", ".join(names) or "none"
        raise ValueError(f"{name}={value!r}: unknown argument. method={method!r} has the options {known}.{belongs}")
    return options


__all__ = ["method_options", "options_of"]
