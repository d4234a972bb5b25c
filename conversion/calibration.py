"""Statistics of what attention reads, gathered while a Whisper decodes calibration audio."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.logging import tqdm

from .latent_weights import Moments
from .latents import ENCODER_OUTPUT_NORM, Latent


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


@dataclass
class InputMoments:
    """Streaming mean and covariance, float64.

    Attributes:
        count: vectors seen.
        total: `[d]`, their sum, relative to `origin`.
        products: `[d, d]`, sum of outer products, relative to `origin`.
        origin: `[d]`, the mean of the first batch, so that nothing large cancels.
    """

    count: int = 0
    total: Tensor | None = None
    products: Tensor | None = None
    origin: Tensor | None = None

    def update(self, vectors: Tensor) -> None:
        """Add `[n, d]` vectors; products are taken in float64."""
        vectors = vectors.double()
        if self.origin is None or self.total is None or self.products is None:
            width = vectors.shape[1]
            self.origin = vectors.mean(dim=0)
            self.total, self.products = vectors.new_zeros(width), vectors.new_zeros(width, width)
        vectors = vectors - self.origin
        self.count += vectors.shape[0]
        self.total += vectors.sum(dim=0)
        self.products.addmm_(vectors.T, vectors)

    @property
    def mean(self) -> Tensor:
        """`[d]`."""
        assert self.origin is not None and self.total is not None
        return self.origin + self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """`[d, d]`, centred."""
        assert self.total is not None and self.products is not None
        shift = self.total / self.count
        return self.products / self.count - torch.outer(shift, shift)


@dataclass(frozen=True)
class InputStatistics:
    """What is known of the vectors that one latent is made from; see `Moments`."""

    count: int
    mean: Tensor
    covariance: Tensor
    gradient: Tensor | None = None


@dataclass
class Statistics:
    """Moments of every place where a latent can be, and what they were gathered from.

    Attributes:
        inputs: of every self-attention, by module name, and of the encoder output.
        queries: for every attention, by module name: `[H, D, D]`, E[q_h q_h^T] of the scaled queries.
        held_out: examples that were kept apart, to measure a conversion on.
        source: facts about model and audio, such as the checksum of the weights and the number of clips.
        examples: what they were gathered from; not kept in a statistics file.
        name: for messages: the file that they were read from.
    """

    inputs: dict[str, InputStatistics]
    queries: dict[str, Tensor]
    held_out: list[Example] = field(default_factory=list)
    source: dict = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)
    name: str = "calibration"

    def moments(self, latent: Latent) -> Moments:
        """The statistics of one latent.

        Raises:
            ValueError: the statistics do not cover it.
        """
        name = input_name(latent.attentions[0])
        missing = [key for key in latent.attentions if key not in self.queries]
        if missing or name not in self.inputs:
            raise ValueError(f"The statistics do not cover {latent.name}: calibrate this model again.")
        of_input = self.inputs[name]
        query = torch.stack([self.queries[attention] for attention in latent.attentions])
        return Moments(of_input.count, of_input.mean, of_input.covariance, query, of_input.gradient)


def input_name(attention: str) -> str:
    """Where the statistics of an attention's keys and values are: all cross-attentions read the encoder output."""
    return ENCODER_OUTPUT_NORM if attention.endswith("encoder_attn") else attention


def gather_statistics(
    model: PreTrainedModel,
    examples: Sequence[Example],
    *,
    gradients: bool = True,
    encoder: bool = True,
    draws: int = 4,
    batch_size: int | None = None,
    seed: int = 0,
) -> Statistics:
    """Run the model over examples, teacher-forced, and accumulate moments at every attention in one pass.

    Padding of the decoder is left out; padding of the audio is not, because Whisper reads silence like speech. The
    Fisher information comes from gradients of random projections of the logits whose covariance is that of the
    log-likelihood's gradient, `diag(p) - p p^T`: unlike sampled tokens they do not vanish where the model is sure.

    Args:
        model: a stock `WhisperForConditionalGeneration` in evaluation mode. Its weights and gradients stay as they are.
        examples: at least one.
        gradients: gather the Fisher information too, for `method="fisher"`; takes about four times as long.
        encoder: gather for encoder self-attention too; without it, gradients stop at the encoder's output.
        draws: random projections per token.
        batch_size: clips at once; None: as many as the gradients of the encoder leave memory for, at most 4.
        seed: of the projections.

    Returns:
        Statistics: on the CPU, float64.

    Raises:
        ValueError: no examples, or activations that are not finite.
    """
    if not examples:
        raise ValueError("examples: at least one is needed to gather statistics.")
    attentions = {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "k_proj") and (encoder or ".encoder." not in name)
    }
    inputs = {input_name(name): InputMoments() for name in attentions}
    queries = {name: (0, torch.zeros(())) for name in attentions}
    fishers = {name: torch.zeros((), dtype=torch.float64, device=model.device) for name in inputs}
    slopes: dict[str, Tensor] = {}
    mask: Tensor | None = None
    tokens = 0

    def of_text(states: Tensor, name: str) -> Tensor:
        return states[mask] if ".decoder." in name else states.flatten(0, 1)

    def see_query(name: str) -> Callable:
        def hook(module, arguments, output):
            attention = attentions[name]
            query = of_text(output.detach(), name).double() * attention.scaling
            query = query.unflatten(-1, (attention.num_heads, -1)).transpose(0, 1)
            count, total = queries[name]
            queries[name] = (count + query.shape[1], total.to(query) + query.transpose(1, 2) @ query)

        return hook

    def see_projection(name: str, is_key: bool) -> Callable:
        source = input_name(name)
        is_first = source == name or name.startswith("model.decoder.layers.0.")  # all cross-attentions read the same

        def hook(module, arguments, output):
            if is_key and is_first:
                inputs[source].update(of_text(arguments[0].detach(), source))
            if gradients:
                weight = module.weight.detach()
                output.requires_grad_()

                def add(slope):  # to the gradient with respect to the projection's input
                    slopes[source] = slopes.get(source, 0) + (slope @ weight).double()

                output.register_hook(add)

        return hook

    handles = []
    for name, attention in attentions.items():
        handles.append(attention.q_proj.register_forward_hook(see_query(name)))
        handles.append(attention.k_proj.register_forward_hook(see_projection(name, is_key=True)))
        handles.append(attention.v_proj.register_forward_hook(see_projection(name, is_key=False)))
    generator = torch.Generator(device=model.device).manual_seed(seed)
    try:
        with _frozen(model), torch.set_grad_enabled(gradients):
            size = batch_size or _batch_size(model, gradients and encoder)
            for batch in batches(examples, size, model, "Gathering statistics"):
                mask = batch["mask"]
                logits = forced_logits(model, batch, encoder)[mask]
                tokens += logits.shape[0]
                for draw in range(draws if gradients else 0):
                    slopes.clear()
                    logits.backward(_projection(logits.detach(), generator), retain_graph=draw < draws - 1)
                    for name, slope in slopes.items():
                        rows = slope.flatten(0, 1)
                        fishers[name] = fishers[name] + rows.T @ rows
    finally:
        for handle in handles:
            handle.remove()
    statistics = Statistics(
        inputs={
            name: InputStatistics(
                seen.count,
                seen.mean.cpu(),
                seen.covariance.cpu(),
                fishers[name].cpu() / (tokens * draws) if gradients else None,
            )
            for name, seen in inputs.items()
        },
        queries={name: (total / count).cpu() for name, (count, total) in queries.items()},
    )
    for name, found in statistics.inputs.items():
        if not all(
            torch.isfinite(part).all() for part in (found.mean, found.covariance, found.gradient) if part is not None
        ):
            raise ValueError(f"The activations at {name} are NaN or infinite: calibrate in float32 (dtype).")
    return statistics


def _batch_size(model: PreTrainedModel, encoder_gradients: bool) -> int:
    """Clips at once: 4, or fewer if what the encoder keeps for its gradients would be more than some 4 GB."""
    config = model.config
    kept = 40 * config.encoder_layers * config.max_source_positions * config.d_model  # 10 float32 vectors per frame
    return max(min(4, 4 * 10**9 // kept), 1) if encoder_gradients else 4


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter of the model asks for gradients meanwhile."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def _projection(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Random vectors `[tokens, vocabulary]` with covariance `diag(p) - p p^T`, the Fisher information of the logits."""
    probabilities = logits.double().softmax(dim=-1)
    noise = torch.randn(logits.shape, generator=generator, dtype=torch.float64, device=logits.device)
    scaled = probabilities.sqrt() * noise
    return (scaled - probabilities * scaled.sum(dim=-1, keepdim=True)).to(logits.dtype)


def batches(
    examples: Sequence[Example], batch_size: int, model: nn.Module, description: str | None = None
) -> Iterator[dict[str, Tensor]]:
    """Examples padded to batches on the model's device and dtype: `input_features`, `decoder_input_ids`, `mask`."""
    parameter = next(model.parameters())
    starts: Iterable[int] = range(0, len(examples), batch_size)
    for start in tqdm(starts, desc=description, unit="batch", disable=description is None):
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


def forced_logits(model: PreTrainedModel, batch: dict[str, Tensor], encoder_gradients: bool) -> Tensor:
    """Logits `[batch, tokens, vocabulary]` of a teacher-forced pass; padding comes last, so it needs no mask."""
    with torch.set_grad_enabled(encoder_gradients and torch.is_grad_enabled()):
        encoder_outputs = model.get_encoder()(batch["input_features"])
    output = model(encoder_outputs=encoder_outputs, decoder_input_ids=batch["decoder_input_ids"], use_cache=False)
    return output.logits
