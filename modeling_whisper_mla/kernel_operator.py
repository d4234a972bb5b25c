"""A function that starts kernels, as an operation that PyTorch's compiler takes as it is."""

import functools
import hashlib
from collections.abc import Callable

import torch
from torch import Tensor


def kernel_operator(result_like: Callable[..., Tensor]) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Decorator: while a compiler traces, the function becomes one operation of the graph; else it is called directly.

    Called directly it takes a third of the time that PyTorch needs for an operation of its registry.

    Args:
        result_like: takes the same arguments and returns an empty tensor of the shape, dtype and device of the result.
    """

    def decorate(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        # Files of a checkpoint are imported as modules of their own, beside those of an installed package.
        namespace = "whisper_mla_" + hashlib.sha256(function.__module__.encode()).hexdigest()[:12]
        operator = torch.library.custom_op(f"{namespace}::{function.__name__}", function, mutates_args=())
        operator.register_fake(result_like)

        @functools.wraps(function)
        def call(*args, **kwargs) -> Tensor:
            return (operator if torch.compiler.is_compiling() else function)(*args, **kwargs)

        return call

    return decorate


__all__ = ["kernel_operator"]
