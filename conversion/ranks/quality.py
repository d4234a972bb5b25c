"""What a conversion does to the next-token distribution, measured on held-out audio."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from whisper_mla.conversion.calibration.examples import Example, encoded_batches


@dataclass(frozen=True)
class Quality:
    """How close a model is to the stock model it came from, on the same audio and the same preceding tokens.

    Attributes:
        kl: mean over tokens of KL(stock || model), in nats.
        token_agreement: share of tokens at which both prefer the same next token.
        tokens: how many were compared.
    """

    kl: float
    token_agreement: float
    tokens: int


class HeldOut:
    """Held-out examples with the stock model's predictions, against which conversions are measured.

    Teacher-forced: every token is predicted from the stock transcript before it. Tokens of the prompt are left out.
    The stock logits stay on the model's device: 4 bytes × vocabulary for every token.

    Args:
        stock: the stock model in evaluation mode.
        examples: at least one.
        batch_size: clips at once.
    """

    def __init__(self, stock: PreTrainedModel, examples: Sequence[Example], batch_size: int = 8):
        if not examples:
            raise ValueError("examples: at least one held-out example is needed to measure a conversion.")
        self._batches = []
        for batch in encoded_batches(stock, examples, batch_size, "Predicting held-out audio"):
            with torch.no_grad():
                batch["logits"] = self._logits(stock, batch, batch["encoder_states"])
            self._batches.append(batch)

    @staticmethod
    def _logits(model: PreTrainedModel, batch: dict[str, Tensor], encoder_states: Tensor) -> Tensor:
        output = model(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoder_states),
            decoder_input_ids=batch["decoder_input_ids"],
            use_cache=False,
        )
        return output.logits[batch["mask"]].float()

    @torch.no_grad()
    def measure(self, model: PreTrainedModel, same_encoder: bool = False) -> Quality:
        """Compare `model` with the stock model.

        Args:
            model: a stock or converted model.
            same_encoder: its encoder is the stock model's, whose outputs are kept.
        """
        kl, agreeing, tokens = 0.0, 0.0, 0
        for batch in self._batches:
            states = batch["encoder_states"]
            if not same_encoder:
                states = model.get_encoder()(batch["input_features"]).last_hidden_state
            logits, stock_logits = self._logits(model, batch, states), batch["logits"]
            log_p, log_q = log_softmax(stock_logits.double(), dim=-1), log_softmax(logits.double(), dim=-1)
            kl += (log_p.exp() * (log_p - log_q)).sum().item()
            agreeing += (logits.argmax(-1) == stock_logits.argmax(-1)).sum().item()
            tokens += logits.shape[0]
        return Quality(kl=max(kl, 0.0) / tokens, token_agreement=agreeing / tokens, tokens=tokens)
