"""The whole Fisher information of a model's decoder weights, as a product with a change of them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .examples import BATCH_SIZE, Example, by_length, encoded_batches
from .gather_statistics import frozen


class FisherInformation:
    """`F`, such that a small change `δ` of the weights costs `½ δ^T F δ` nats of KL per predicted token.

    `F = E[J^T (diag(p) - p p^T) J]` with the Jacobian `J` of the logits is never formed: its product with `δ` takes a
    forward pass with derivatives, and one forward and backward (Schraudolph, "Fast curvature matrix-vector products for
    second-order gradient descent", 2002). No sampling, no independence assumed, all layers at once.

    Args:
        model: a stock model in evaluation mode and float32. It is left as it is.
        examples: at least one, teacher-forced; padding and the prompt are not predicted.
        batch_size: clips at once.
    """

    def __init__(self, model: PreTrainedModel, examples: Sequence[Example], batch_size: int = BATCH_SIZE):
        self._model = model
        self._batches = []
        ordered = by_length(examples, batch_size)
        for batch in encoded_batches(model, ordered, batch_size, "Encoding calibration audio"):
            states = batch["encoder_states"].cpu()  # large, and read once per pass
            kept = {"encoder_states": states, "tokens": batch["decoder_input_ids"], "mask": batch["mask"]}
            self._batches.append(kept)
        self._tokens = sum(int(batch["mask"].sum()) for batch in self._batches)

    def times(self, change: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`F δ`.

        Args:
            change: `δ`, by name of the decoder's parameters; those that are not named do not change.

        Returns:
            dict[str, Tensor]: for the same parameters, float64, on the model's device.
        """
        weights = dict(self._model.named_parameters())
        total = {name: torch.zeros_like(weights[name], dtype=torch.float64) for name in change}
        with _eager_attention(self._model), frozen(self._model):
            for batch in self._batches:
                # Two forward passes: in one, the derivatives' own graph would be recorded too, for nothing.
                with torch.no_grad():
                    weighted = self._weighted_slopes({name: weights[name] for name in change}, change, batch)
                with torch.enable_grad():
                    leaves = {name: weights[name].detach().requires_grad_() for name in change}
                    gradients = torch.autograd.grad(self._logits(leaves, batch), list(leaves.values()), weighted)
                for name, gradient in zip(leaves, gradients, strict=True):
                    total[name] += gradient.double() / self._tokens
        return total

    def _weighted_slopes(
        self, weights: dict[str, Tensor], change: Mapping[str, Tensor], batch: dict[str, Tensor]
    ) -> Tensor:
        """`(diag(p) - p p^T) J δ`, `[tokens, vocabulary]`."""
        with forward_ad.dual_level():
            changed = {name: forward_ad.make_dual(tensor, change[name].to(tensor)) for name, tensor in weights.items()}
            logits, slope = forward_ad.unpack_dual(self._logits(changed, batch))
        probabilities, slope = logits.double().softmax(dim=-1), slope.double()
        return (probabilities * (slope - (probabilities * slope).sum(dim=-1, keepdim=True))).to(logits)

    def _logits(self, weights: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
        states = batch["encoder_states"].to(self._model.device)
        inputs = {
            "encoder_outputs": BaseModelOutput(last_hidden_state=states),
            "decoder_input_ids": batch["tokens"],
            "use_cache": False,
        }
        return functional_call(self._model, weights, kwargs=inputs).logits[batch["mask"]]


@contextmanager
def _eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Fused attention has no forward-mode derivative."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


__all__ = ["FisherInformation"]
