"""Examples: clips as a model reads them, in batches, and what a model makes of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.logging import tqdm

# Examples that a model reads at once where no gradients are kept.
BATCH_SIZE = 8


@dataclass(frozen=True)
class Example:
    """One clip, as the model reads it.

    Attributes:
        input_features: `[mel bins, frames]`.
        decoder_input_ids: `[tokens]`, the prompt and the transcript, without the token that ends it.
        prompt_length: tokens of the prompt (start, language, task, …).
        encoder_states: `[positions, d]`, what the stock encoder makes of the audio, on the CPU; None where not kept.
    """

    input_features: Tensor
    decoder_input_ids: Tensor
    prompt_length: int = 1
    encoder_states: Tensor | None = None


def like_lengths(lengths: Sequence[int], batch_size: int) -> list[int]:
    """Indices, such that consecutive batches hold like lengths and little of them is padding. The first batch is the
    middle one: the time that it takes is typical."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    batched = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if batched:
        batched.insert(0, batched.pop((len(batched) - 1) // 2))  # never the last of several, which may be smaller
    return [index for batch in batched for index in batch]


def by_length(examples: Sequence[Example], batch_size: int) -> list[Example]:
    """The examples in the order of `like_lengths` of their tokens."""
    return [examples[index] for index in like_lengths([len(e.decoder_input_ids) for e in examples], batch_size)]


def batches(
    examples: Sequence[Example],
    batch_size: int,
    model: nn.Module,
    description: str | None = None,
    done: int = 0,
) -> Iterator[dict[str, Tensor]]:
    """Examples padded to batches on the model's device and dtype: `input_features`, `decoder_input_ids`, `mask`, and
    `encoder_states` where all of a batch have them; `done` batches are left out, those at the beginning."""
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
        batch = {
            "input_features": features.to(parameter.device, parameter.dtype),
            "decoder_input_ids": padded.to(parameter.device),
            "mask": mask.to(parameter.device),
        }
        kept = [example.encoder_states for example in chosen if example.encoder_states is not None]
        if len(kept) == len(chosen):
            batch["encoder_states"] = torch.stack(kept).to(parameter.device, parameter.dtype)
        yield batch


def encoded_batches(
    stock: PreTrainedModel, examples: Sequence[Example], batch_size: int, description: str
) -> Iterator[dict[str, Tensor]]:
    """As `batches`, with `encoder_states` of the model; `mask` leaves out what predicts tokens of the prompt."""
    starts = range(0, len(examples), batch_size)
    for start, batch in zip(starts, batches(examples, batch_size, stock, description), strict=True):
        prompts = torch.tensor([example.prompt_length for example in examples[start : start + batch_size]])
        positions = torch.arange(batch["mask"].shape[1])
        batch["mask"] &= (positions >= prompts[:, None] - 1).to(batch["mask"].device)
        if "encoder_states" not in batch:
            with torch.no_grad():
                batch["encoder_states"] = stock.get_encoder()(batch["input_features"]).last_hidden_state
        yield batch


def forced_logits(model: PreTrainedModel, batch: dict[str, Tensor], through_encoder: bool) -> Tensor:
    """Logits `[batch, tokens, vocabulary]` of a teacher-forced pass; padding comes last, so it needs no mask.

    Args:
        model: that made the `encoder_states` of the batch, if it has any.
        batch: of `batches`.
        through_encoder: run the encoder whatever is known of its output, with gradients if they are enabled.
    """
    if "encoder_states" in batch and not through_encoder:
        encoder_outputs = BaseModelOutput(last_hidden_state=batch["encoder_states"])
    else:
        with torch.set_grad_enabled(through_encoder and torch.is_grad_enabled()):
            encoder_outputs = model.get_encoder()(batch["input_features"])
    output = model(encoder_outputs=encoder_outputs, decoder_input_ids=batch["decoder_input_ids"], use_cache=False)
    return output.logits
