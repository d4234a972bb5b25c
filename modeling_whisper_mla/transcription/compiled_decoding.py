"""Decoding steps compiled by PyTorch: what is done between the matrix products becomes few kernels."""

import functools
import shutil
from os import environ
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from whisper_mla.generation_whisper_mla import LatentCacheMixin, WhisperMLAGenerationMixin
from whisper_mla.transformers_releases import CACHE

from .int8_operator import call_products_from_cpp

_COMPILERS = ("g++", "clang++", "cl")


def compile_decoding(model: PreTrainedModel, **options: Any) -> PreTrainedModel:
    """Compile the decoding step of a converted model: greedy, sampling and beams, any batch, any position.

    On a CPU the first two steps after this take half a minute, or seconds where PyTorch finds its compiled kernels on
    disk; one batch size or number of beams that was 1 and no longer is compiles once more. The encoder, the prompt and
    steps that return attentions or hidden states run as before. What is computed is the same up to rounding. Products
    with int8 weights are called from C++, see [`int8_operator.call_products_from_cpp`].

    On a GPU the cache is allocated at once instead (`cache_implementation="static"` in the generation config), with
    which Transformers compiles steps itself and replays them as CUDA graphs; not for beams.

    Args:
        model: a Whisper-MLA model in evaluation mode; on a CPU its `forward` is replaced, by one that a copy of the
            model would still call for this one: copy first.
        options: of `torch.compile`, in place of the ones chosen here; with them a GPU is treated as a CPU.

    Returns:
        PreTrainedModel: `model`.

    Raises:
        ValueError: not a Whisper-MLA model, or compiled already.
        RuntimeError: there is no C++ compiler, which PyTorch needs for a CPU.
    """
    if not isinstance(model, LatentCacheMixin):
        raise ValueError(
            f"{type(model).__name__}: only converted models decode compiled. Convert it: whisper-mla convert."
        )
    if "forward" in model.__dict__:
        raise ValueError("model: its forward is replaced already (compiled, or by hooks of a device map).")
    on_cpu = model.device.type == "cpu"
    if on_cpu and not any(shutil.which(name) for name in (environ.get("CXX"), *_COMPILERS) if name):
        raise RuntimeError(f"compiling on a CPU needs one of {', '.join(_COMPILERS)}. Install one, or do not compile.")
    if not on_cpu and not options:
        assert model.generation_config is not None
        model.generation_config.cache_implementation = "static"
        return model
    if isinstance(model, WhisperMLAGenerationMixin):
        model.expect_many_steps()  # or there would be a second graph after some steps
    plain = model.forward
    if on_cpu and "backend" not in options:
        call_products_from_cpp(model)
        options = {"options": _cpu_options(), **options}
    compiled = torch.compile(plain, **{"dynamic": True, **options})

    @functools.wraps(plain)
    def forward(*args, **kwargs):
        return (compiled if is_step(model, kwargs) else plain)(*args, **kwargs)

    model.forward = forward  # type: ignore[method-assign]
    return model


def _cpu_options() -> dict[str, Any]:
    """Inductor's options for a CPU.

    PyTorch keeps compiled graphs on disk under a key that says nothing of the processor's instructions, unless they are
    an option: a folder of them that was made with AVX-512 gives other tokens, without an error, on a processor that has
    AVX2 only (seen with PyTorch 2.13).
    """
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    return {"cpp.simdlen": pick_vec_isa().bit_width(), "cpp_wrapper": True}  # kernels called from C++, not from Python


def is_step(model: PreTrainedModel, inputs: dict[str, Any]) -> bool:
    """Whether a call of `model` continues texts by one token, from a cache, and returns nothing but logits."""
    tokens, cache = inputs.get("decoder_input_ids"), inputs.get(CACHE)
    return (
        not model.training
        and isinstance(tokens, Tensor)
        and tokens.shape[1] == 1
        and cache is not None
        and cache.get_seq_length() > 1  # PyTorch takes a length of 1 for a case of its own
        and inputs.get("labels") is None
        and not any(inputs.get(name) for name in ("output_attentions", "output_hidden_states"))
    )


__all__ = ["compile_decoding"]
