"""Products with 8-bit weights that a compiled graph calls from C++.

A step has six for each layer and one for the vocabulary, and a call through Python takes as long as a small product
(`benchmarks/step_overhead.py`).
"""

import functools
import hashlib
import weakref
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from whisper_mla.int8_linear import FewRows, Int8Linear

logger = logging.get_logger(__name__)

# Packed weights are objects, which a compiled graph cannot hold: it knows them by a number.
_SOURCE = """
#include <ATen/native/quantized/PackedParams.h>
#include <mutex>
#include <torch/library.h>
#include <unordered_map>

namespace {
struct Held {
    c10::intrusive_ptr<LinearPackedParamsBase> weight;
    int64_t zero_point;
};
std::unordered_map<int64_t, Held> all_held;
std::mutex lock;
int64_t last_number = 0;

int64_t hold(const c10::intrusive_ptr<LinearPackedParamsBase>& weight, int64_t zero_point) {
    std::lock_guard<std::mutex> guard(lock);
    all_held[++last_number] = {weight, zero_point};
    return last_number;
}

void release(int64_t number) {
    std::lock_guard<std::mutex> guard(lock);
    all_held.erase(number);
}

Held find(int64_t number) {
    std::lock_guard<std::mutex> guard(lock);
    auto found = all_held.find(number);
    TORCH_CHECK(found != all_held.end(), "no packed weight has the number ", number);
    return found->second;
}

at::Tensor product(const at::Tensor& rows, int64_t number, int64_t outputs) {
    Held held = find(number);
    double step = 1.0 / (held.zero_point - 1);
    return held.weight->apply_with_input_q_dq_qweight_dq_output_fp32(rows, step, held.zero_point);
}

at::Tensor empty_product(const at::Tensor& rows, int64_t number, int64_t outputs) {
    auto shape = rows.sym_sizes().vec();
    shape.back() = outputs;
    return rows.new_empty_symint(shape);
}
}  // namespace

TORCH_LIBRARY(NAMESPACE, library) {
    library.def("hold", hold);
    library.def("release", release);
    library.def("product(Tensor rows, int number, int outputs) -> Tensor");
}
TORCH_LIBRARY_IMPL(NAMESPACE, CPU, library) { library.impl("product", product); }
TORCH_LIBRARY_IMPL(NAMESPACE, Meta, library) { library.impl("product", empty_product); }
"""
_NAMESPACE = "whisper_mla_" + hashlib.sha256(_SOURCE.encode()).hexdigest()[:12]


def call_products_from_cpp(model: nn.Module) -> None:
    """Make the [`Int8Linear`] layers of `model` use an operator of C++ wherever they are compiled.

    It is compiled itself the first time (some seconds; PyTorch keeps it on disk). Where that fails, a warning says why,
    and products go through Python as before: the same numbers, slower. The same happens to layers whose weights are
    packed anew, because they were moved or loaded.

    Args:
        model: on a CPU; its weights are packed if they are not yet. Without int8 weights nothing is done.

    Raises:
        RuntimeError: int8 weights are not on a CPU, or PyTorch has no kernel for them.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, Int8Linear)]
    packed = [layer.packed() for layer in layers]
    few = [weight for weight in packed if isinstance(weight, FewRows)]
    operators = _operators() if few else None
    if operators is None:
        return
    for weight in few:
        if weight.operator is not operators.product.default:
            weight.operator = operators.product.default
            weight.operator_number = operators.hold(weight.packed, weight.zero_point)
            weakref.finalize(weight, operators.release, weight.operator_number)


@functools.cache
def _operators() -> Any | None:
    """The namespace of the operators, or None where they cannot be compiled."""
    try:
        from torch._inductor.codecache import CppCodeCache

        CppCodeCache.load(_SOURCE.replace("NAMESPACE", _NAMESPACE))
        operators = getattr(torch.ops, _NAMESPACE)
        return operators if operators.product.default and operators.hold.default else None
    except Exception as error:  # whatever a compiler, a linker or a later PyTorch has against it
        logger.warning(f"int8 weights: products are called through Python, which is slower: {error}")
        return None


__all__ = ["call_products_from_cpp"]
