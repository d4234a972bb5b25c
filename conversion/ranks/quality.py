"""What a conversion does to the next-token distribution, measured on held-out audio."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from whisper_mla.conversion.calibration.examples import BATCH_SIZE, Example, encoded_batches
from whisper_mla.conversion.calibration.word_changes import WordChanges
from whisper_mla.conversion.errors import ConversionError

# Share of stock's words. The word error rate against any reference moves by no more than the words that change.
WORD_CHANGE_LIMIT = 0.05


@dataclass(frozen=True)
class Quality:
    """How close a model is to the stock model it came from, on the same audio and the same preceding tokens.

    Attributes:
        kl: mean over tokens of KL(stock || model), in nats.
        token_agreement: share of tokens at which both prefer the same next token.
        tokens: how many were compared.
        words: what becomes of the transcripts; None where that was not measured.
        measured_on: what the audio was.
    """

    kl: float
    token_agreement: float
    tokens: int
    words: WordChanges | None = None
    measured_on: str = "held-out calibration audio"


def refuse_changes(quality: Quality) -> None:
    """Stop a conversion that changes too many words.

    Raises:
        ConversionError: more than `WORD_CHANGE_LIMIT` of stock's words; the message has all figures.
    """
    words = quality.words
    if words is None or words.rate is None or words.rate <= WORD_CHANGE_LIMIT:
        return
    raise ConversionError(
        f"This conversion loses too much: word error rate {words.rate:.1%} against the stock model's own {words.words} "
        f"words on {quality.measured_on} ({words.same_clips} of {words.clips} transcripts equal), limit "
        f"{WORD_CHANGE_LIMIT:.0%}; KL {quality.kl:.2g} nats per token, same next token {quality.token_agreement:.1%}. "
        "Take larger ranks, or latent_dtype='int4' (--latent-dtype int4) instead of a rank, or more calibration audio "
        "(calibration=, --calibration); or keep it with force=True (--force)."
    )


class HeldOut:
    """Held-out examples with the stock model's predictions, against which conversions are measured.

    Teacher-forced: every token is predicted from the stock transcript before it. Tokens of the prompt are left out.
    The stock logits stay on the model's device: 4 bytes × vocabulary for every token.

    Args:
        stock: the stock model in evaluation mode.
        examples: at least one.
        batch_size: clips at once.
    """

    def __init__(self, stock: PreTrainedModel, examples: Sequence[Example], batch_size: int = BATCH_SIZE):
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

    @torch.no_grad()
    def decode(self, model: PreTrainedModel, same_encoder: bool = False) -> list[list[int]]:
        """What a model itself says of the examples: greedy decoding, in the language and task of each.

        Args:
            model, same_encoder: as of `measure`.

        Returns:
            list[list[int]]: tokens of each example, special ones included, in order. A model that finds no end is cut
            off at one and a half times the longest transcript of its batch and 16 tokens more.
        """
        found: list[list[int]] = []
        for batch in self._batches:
            states = batch["encoder_states"]
            if not same_encoder:
                states = model.get_encoder()(batch["input_features"]).last_hidden_state
            tokens = model.generate(  # type: ignore[operator]
                encoder_outputs=BaseModelOutput(last_hidden_state=states),
                max_new_tokens=min(batch["mask"].shape[1] * 3 // 2 + 16, model.config.max_target_positions // 2),
                num_beams=1,
                force_unique_generate_call=True,
                **_language_and_task(model, batch["decoder_input_ids"]),
            )
            found += getattr(tokens, "sequences", tokens).tolist()
        return found


def _language_and_task(model: PreTrainedModel, decoder_input_ids: Tensor) -> dict:
    """Arguments of `generate` for a multilingual model, from the prompts of `decoder_input_ids` `[batch, tokens]`."""
    generation: Any = model.generation_config
    if not getattr(generation, "is_multilingual", False):
        return {}
    languages = {number: name for name, number in generation.lang_to_id.items()}
    tasks = {number: name for name, number in generation.task_to_id.items()}
    rows = decoder_input_ids.tolist()
    found = {"language": [next((languages[token] for token in row if token in languages), None) for row in rows]}
    task = next((tasks[token] for token in rows[0] if token in tasks), None)
    return {**({} if None in found["language"] else found), **({} if task is None else {"task": task})}
