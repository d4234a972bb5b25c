"""A linear layer of 8-bit weights for CPUs: rounded once, multiplied as integers, scaled back.

Weights are rounded to nearest with one scale for each output, inputs at every call with one scale for each row:

    y = (round(n x / a) . round(127 W / s)) (a / n) (s / 127) + b        a = max |x| of a row, s = max |W| of an output

with n = 127, or 63 on processors without VNNI.
The sums in between are exact, so what is computed for a row does not depend on the rows beside it (but for the last
bit of the factors). One scale for all rows, which is what PyTorch's own dynamic linears take, is coarse wherever one
frame or hypothesis is larger than the others. Products are taken by FBGEMM (x86) where rows are few, and by oneDNN
where they are many.
"""

import functools
import itertools
import re
import warnings
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

_MAX_CODE = 127
_SMALLEST = 1e-30  # a row of zeros is divided by it


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a matrix to 8 bits with one scale for each row.

    Args:
        weight: `[outputs, inputs]`.

    Returns:
        tuple[Tensor, Tensor]: codes from -127 to 127, int8 `[outputs, inputs]`, and scales, float32 `[outputs]`: a
        code times its scale is nearest to the weight.
    """
    weight = weight.detach().float()
    scale = weight.abs().amax(dim=1).clamp_min(_SMALLEST) / _MAX_CODE
    return torch.round(weight / scale[:, None]).to(torch.int8), scale


def missing_kernel() -> str | None:
    """Why 8-bit products cannot be taken here, or None where they can."""
    if _has_fbgemm() or _has_onednn():
        return None
    return f"this PyTorch ({torch.__version__}) has neither FBGEMM nor oneDNN"


def _has_fbgemm() -> bool:
    return (
        "fbgemm" in torch.backends.quantized.supported_engines
        and hasattr(torch.ops.quantized, "linear_with_input_q_dq_qweight_dq_output_fp32")
        and hasattr(torch, "_make_per_channel_quantized_tensor")
    )


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qlinear_pointwise")


class PackedWeight:
    """A weight as a kernel wants it.

    Args:
        codes: int8 `[outputs, inputs]`.
        scale: float32 `[outputs]`.
        zero_point: 128 for inputs of 8 bits, 64 for 7.

    Attributes:
        operator: what a compiled graph calls in its place, with rows, a number and the number of outputs: a graph can
            hold tensors and numbers only.
        operator_number: what the operator knows it by.
    """

    def __init__(self, codes: Tensor, scale: Tensor, zero_point: int):
        self.zero_point = zero_point
        self.operator = getattr(torch.ops, _library.ns).product.default
        self.operator_number = next(_numbers)
        _packed[self.operator_number] = self

    def __call__(self, rows: Tensor) -> Tensor:
        """`rows` `[..., inputs]`, within -1 to 1, times the weight: `[..., outputs]`."""
        raise NotImplementedError


_numbers = itertools.count()
_packed: WeakValueDictionary[int, PackedWeight] = WeakValueDictionary()
# A checkpoint's own copy of this file has an operator of its own, and so has one that is imported again.
_module = re.sub(r"\W", "_", __name__)
_namespaces = (f"{_module}_{count}" for count in itertools.count())
_library = torch.library.Library(next(n for n in _namespaces if not hasattr(getattr(torch.ops, n), "product")), "DEF")
_library.define("product(Tensor rows, int number, int outputs) -> Tensor")
_library.impl("product", lambda rows, number, outputs: _packed[number](rows), "CPU")
torch.library.register_fake(
    f"{_library.ns}::product",
    lambda rows, number, outputs: rows.new_empty(*rows.shape[:-1], outputs),
    lib=_library,
)


class FewRows(PackedWeight):
    """The product of rows with a weight by FBGEMM: little is done around it."""

    def __init__(self, codes: Tensor, scale: Tensor, zero_point: int):
        super().__init__(codes, scale, zero_point)
        zeros = torch.zeros(len(scale), dtype=torch.long)
        before, torch.backends.quantized.engine = torch.backends.quantized.engine, "fbgemm"
        try:
            with warnings.catch_warnings():  # such tensors will go; then oneDNN takes these products too
                warnings.simplefilter("ignore", UserWarning)
                quantised = torch._make_per_channel_quantized_tensor(codes, scale.double(), zeros, 0)
            self.packed = torch.ops.quantized.linear_prepack(quantised, None)
        finally:
            torch.backends.quantized.engine = before

    def __call__(self, rows: Tensor) -> Tensor:
        step = 1 / (self.zero_point - 1)
        return torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            rows, step, self.zero_point, self.packed
        )


class ManyRows(PackedWeight):
    """The same by oneDNN, which is the faster one for the frames of an encoder."""

    def __init__(self, codes: Tensor, scale: Tensor, zero_point: int):
        super().__init__(codes, scale, zero_point)
        self.packed = torch.ops.onednn.qlinear_prepack(codes, None)
        self.scale, self.zeros = scale, torch.zeros(len(scale), dtype=torch.int32)

    def __call__(self, rows: Tensor) -> Tensor:
        # Signed codes are quicker. Without VNNI they are shifted to 8 bits that do not fit, so 7 bits are unsigned.
        dtype, shift = (torch.int8, 0) if self.zero_point == 128 else (torch.uint8, self.zero_point)
        levels = self.zero_point - 1
        codes = (rows * levels).round_().add_(shift).to(dtype).flatten(0, -2)
        product = torch.ops.onednn.qlinear_pointwise(
            codes, 1 / levels, shift, self.packed, self.scale, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return product.view(*rows.shape[:-1], -1)


@functools.cache
def zero_point(kernel: type[PackedWeight]) -> int:
    """128 where `kernel` computes exactly with inputs of 8 bits, else 64, for inputs of 7 bits.

    Without VNNI pairs of products are added up in 16 bits: 127 · 127 · 2 fits, 255 · 127 · 2 does not. Asked of the
    kernel itself, because libraries can be told to use fewer instructions than the processor has.
    """
    ones = torch.ones(64, 64)
    codes, scale = quantize_rows(ones)
    exact = (kernel(codes, scale, 128)(ones) - 64).abs().max() < 0.1
    return 128 if exact else 64


def pack_weight(codes: Tensor, scale: Tensor, many_rows: bool = False) -> PackedWeight:
    """A weight for the kernel that is the faster one.

    Args:
        codes: int8 `[outputs, inputs]`.
        scale: float32 `[outputs]`.
        many_rows: whether it is multiplied with hundreds of rows rather than with a few.
    """
    few = _has_fbgemm() and not (many_rows and _has_onednn())
    kernel: type[PackedWeight] = FewRows if few else ManyRows
    return kernel(codes, scale, zero_point(kernel))  # type: ignore[arg-type]


class Int8Linear(nn.Module):
    """`nn.Linear` with weights of 8 bits, for inference on a CPU.

    Args:
        in_features, out_features: widths of input and output.
        bias: whether something is added.
        many_rows: whether it is called with hundreds of rows (an encoder) rather than with a few (decoding).

    Attributes:
        weight: codes, int8 `[out_features, in_features]`.
        scale: of each output, float32 `[out_features]`.
        bias: `[out_features]` or None.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True, many_rows: bool = False):
        super().__init__()
        self.in_features, self.out_features, self.many_rows = in_features, out_features, many_rows
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("scale", torch.zeros(out_features))
        self.register_buffer("bias", torch.zeros(out_features) if bias else None)
        self._product: PackedWeight | None = None

    @classmethod
    def from_linear(cls, linear: nn.Linear, many_rows: bool = False) -> "Int8Linear":
        """The rounded `linear`."""
        new = cls(linear.in_features, linear.out_features, linear.bias is not None, many_rows)
        new.weight, new.scale = quantize_rows(linear.weight)
        if linear.bias is not None:
            new.bias = linear.bias.detach().float()
        return new

    def dequantize(self) -> Tensor:
        """The weight that is computed with: `[out_features, in_features]`."""
        return self.weight * self.scale[:, None]

    def forward(self, inputs: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`.

        Raises:
            RuntimeError: `inputs` are not on a CPU.
        """
        product_of = self.packed()
        if inputs.device.type != "cpu":
            raise RuntimeError(f"Int8Linear: an input on {inputs.device}. {ON_CPU_ONLY}")
        rows = inputs.float()
        largest = rows.abs().amax(dim=-1, keepdim=True).clamp_min_(_SMALLEST)
        rows = rows / largest
        if torch.compiler.is_compiling():  # packed weights are no tensors that could be traced
            product = product_of.operator(rows, product_of.operator_number, self.out_features)
        else:
            product = product_of(rows)
        outputs = product.mul_(largest) if self.bias is None else torch.addcmul(self.bias, product, largest)
        return outputs.to(inputs.dtype)

    def packed(self) -> PackedWeight:
        """The weight as its kernel wants it, packed when first asked for.

        Raises:
            RuntimeError: it is not on a CPU, or there is no kernel.
        """
        if self._product is None:
            self._product = self._pack()
        return self._product

    def _pack(self) -> PackedWeight:
        if self.weight.device.type != "cpu":
            raise RuntimeError(f"Int8Linear: weights on {self.weight.device}. {ON_CPU_ONLY}")
        missing = missing_kernel()
        if missing is not None:
            raise RuntimeError(f"Int8Linear: {missing}. Load the model without int8 weights.")
        return pack_weight(self.weight, self.scale.float(), self.many_rows)

    def _apply(self, *args, **kwargs):
        self._product = None
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args, **kwargs):
        self._product = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self):
        return {**self.__dict__, "_product": None}  # packed again in a copy

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


ON_CPU_ONLY = "int8 weights run on CPUs only: use device='cpu', or load the model without them."

__all__ = ["ON_CPU_ONLY", "Int8Linear", "missing_kernel", "pack_weight", "quantize_rows"]
