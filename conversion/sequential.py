"""Statistics of one latent while the layers below it are converted already."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .calibration import Example, InputMoments, batches, forced_logits


@dataclass(frozen=True)
class PairedMoments:
    """What the stock model (`x`) and the partly converted one (`x_new`) hand to the same attention.

    Attributes:
        count: vectors.
        stock_mean, mean: `[d]`, of `x` and of `x_new`.
        covariance: `[d, d]`, of `x_new`.
        cross: `[d, d]`, `E[(x - E x)(x_new - E x_new)^T]`.
    """

    count: int
    stock_mean: Tensor
    mean: Tensor
    covariance: Tensor
    cross: Tensor


class _ReachedError(Exception):
    """The attention has been reached; nothing after it matters."""


@torch.no_grad()
def paired_moments(
    stock: PreTrainedModel,
    converted: PreTrainedModel,
    attention: str,
    examples: Sequence[Example],
    batch_size: int = 8,
) -> PairedMoments:
    """Run both models up to one attention over the same examples.

    Args:
        stock, converted: Whisper models of one shape in evaluation mode, the second with some layers approximated.
        attention: module name.
        examples: at least one.
        batch_size: clips at once.

    Returns:
        PairedMoments: float64, on the models' device.
    """
    both = InputMoments()
    for batch in batches(examples, batch_size, stock):
        states = [_input_of(model, attention, batch) for model in (stock, converted)]
        rows = [
            state[batch["mask"]]
            if attention.endswith("self_attn") and ".decoder." in attention
            else state.flatten(0, 1)
            for state in states
        ]
        both.update(torch.cat(rows, dim=1))
    width = both.mean.shape[0] // 2
    return PairedMoments(
        both.count,
        both.mean[:width],
        both.mean[width:],
        both.covariance[width:, width:],
        both.covariance[:width, width:],
    )


def _input_of(model: PreTrainedModel, attention: str, batch: dict[str, Tensor]) -> Tensor:
    seen = []

    def hook(module, arguments):
        seen.append(arguments[0])
        raise _ReachedError

    handle = model.get_submodule(f"{attention}.k_proj").register_forward_pre_hook(hook)
    try:
        forced_logits(model, batch, encoder_gradients=False)
    except _ReachedError:
        pass
    finally:
        handle.remove()
    return seen[0]
