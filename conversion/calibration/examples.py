"""Examples: clips as a model reads them, in batches, and what a model makes of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.logging import tqdm


@dataclass(frozen=True)
class Example:
    """One clip, as the model reads it.

    Attributes:
        input_features: `[mel bins, frames]`.
        decoder_input_ids: `[tokens]`, the prompt and the transcript, without the token that ends it.
        prompt_length: tokens of the prompt (start, language, task, …).
    """

    input_features: Tensor
    decoder_input_ids: Tensor
    prompt_length: int = 1


def batches(
    examples: Sequence[Example],
    batch_size: int,
    model: nn.Module,
    description: str | None = None,
    done: int = 0,
) -> Iterator[dict[str, Tensor]]:
    """Examples padded to batches on the model's device and dtype: `input_features`, `decoder_input_ids`, `mask`; `done`
    batches are left out, those at the beginning."""
    parameter = next(model.parameters())
    starts: Sequence[int] = range(0, len(examples), batch_size)
    bar = {"desc": description, "unit": "batch", "disable": description is None}
    for start in tqdm(starts[done:], initial=done, total=len(starts), **bar):
        chosen = examples[start : start + batch_size]
        ids = [example.decoder_input_ids for example in chosen]
        length = max(len(row) for row in ids)
        padded = torch.stack([nn.functional.pad(row, (0, length - len(row))) for row in ids])
        mask = torch.stack([torch.arange(length) < len(row) for row in ids])
        features = torch.stack([example.input_features for example in chosen])
        yield {
            "input_features": features.to(parameter.device, parameter.dtype),
            "decoder_input_ids": padded.to(parameter.device),
            "mask": mask.to(parameter.device),
        }


def encoded_batches(
    stock: PreTrainedModel, examples: Sequence[Example], batch_size: int, description: str
) -> Iterator[dict[str, Tensor]]:
    """As `batches`, with `encoder_states` of the model; `mask` leaves out what predicts tokens of the prompt."""
    starts = range(0, len(examples), batch_size)
    for start, batch in zip(starts, batches(examples, batch_size, stock, description), strict=True):
        prompts = torch.tensor([example.prompt_length for example in examples[start : start + batch_size]])
        positions = torch.arange(batch["mask"].shape[1])
        batch["mask"] &= (positions >= prompts[:, None] - 1).to(batch["mask"].device)
        with torch.no_grad():
            batch["encoder_states"] = stock.get_encoder()(batch["input_features"]).last_hidden_state
        yield batch


def forced_logits(model: PreTrainedModel, batch: dict[str, Tensor], encoder_gradients: bool) -> Tensor:
    """Logits `[batch, tokens, vocabulary]` of a teacher-forced pass; padding comes last, so it needs no mask."""
    with torch.set_grad_enabled(encoder_gradients and torch.is_grad_enabled()):
        encoder_outputs = model.get_encoder()(batch["input_features"])
    output = model(encoder_outputs=encoder_outputs, decoder_input_ids=batch["decoder_input_ids"], use_cache=False)
    return output.logits
