"""Gather statistics of what attention reads while a Whisper decodes calibration audio."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.logging import tqdm

from whisper_mla.conversion.source.latents import input_name

from .attention_hooks import AttentionHooks
from .examples import Example, batches, by_length, forced_logits
from .interrupted_gathering import InterruptedGathering
from .kronecker import KroneckerFactors, KroneckerSums
from .statistics import InputMoments, InputStatistics, Statistics


@dataclass
class _Sums:
    """What is summed over batches; `done` counts them, for each of the two passes."""

    random: Tensor  # state of the generator of projections
    inputs: dict[str, InputMoments]
    queries: dict[str, tuple[int, Tensor]]
    fishers: dict[str, Tensor]
    predicted: int = 0  # tokens, counted once for every draw
    turns: dict[str, list[Tensor]] = field(default_factory=dict)  # of KroneckerSums
    done: list[int] = field(default_factory=lambda: [0, 0])

    def content(self) -> dict[str, Any]:
        """For `InterruptedGathering`."""
        return {**vars(self), "inputs": {name: vars(moments) for name, moments in self.inputs.items()}}

    @classmethod
    def of(cls, content: dict[str, Any], device: torch.device) -> "_Sums":
        """What `content` gave, back on the device."""
        sums = cls(**send_to_device({**content, "random": None}, device))
        sums.random = content["random"]  # stays on the CPU, wherever the generator is
        sums.inputs = {name: InputMoments(**moments) for name, moments in sums.inputs.items()}  # type: ignore[arg-type]
        return sums


def gather_statistics(
    model: PreTrainedModel,
    examples: Sequence[Example],
    *,
    gradients: bool = True,
    encoder: bool = True,
    draws: int = 2,
    batch_size: int | None = None,
    seed: int = 0,
    interrupted: InterruptedGathering | None = None,
    shown: bool = True,
) -> Statistics:
    """Run the model over examples, teacher-forced, and accumulate moments at every attention.

    Padding of the decoder is left out; padding of the audio is not, because Whisper reads silence like speech. The
    Fisher information comes from gradients of random projections of the logits whose covariance is that of the
    log-likelihood's gradient, `diag(p) - p p^T`: unlike sampled tokens they do not vanish where the model is sure.
    Moments take one pass; `KroneckerFactors`, which start from them, a second.

    Args:
        model: a stock `WhisperForConditionalGeneration` in evaluation mode. Its weights and gradients stay as they are.
        examples: at least one.
        gradients: gather the Fisher information too, for `method="fisher"`; takes several times as long.
        encoder: gather for encoder self-attention too; without it, gradients stop at the encoder's output.
        draws: random projections per token. More gave no better conversion of a real model.
        batch_size: clips at once; None: as many as the gradients of the encoder leave memory for, at most 4.
        seed: of the projections.
        interrupted: where sums are kept meanwhile, and taken from.
        shown: by a progress bar over both passes.

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
    size = batch_size or batch_size_for(model, gradients and encoder)
    ordered = by_length(examples, size)
    generator = torch.Generator(device=model.device).manual_seed(seed)
    places = [input_name(name) for name in attentions]
    before = interrupted.read() if interrupted is not None else None
    if before is not None:
        sums = _Sums.of(before, model.device)
        generator.set_state(sums.random)
    else:
        sums = _Sums(
            random=generator.get_state(),
            inputs={place: InputMoments() for place in places},
            queries={name: (0, torch.zeros(())) for name in attentions},
            fishers={place: torch.zeros((), dtype=torch.float64, device=model.device) for place in places},
        )
    mask: Tensor | None = None

    total = -(-len(examples) // size) * (2 if gradients else 1)
    bar = tqdm(total=total, initial=sum(sums.done), desc="Gathering statistics", unit="batch", disable=not shown)

    def passes(number: int, hooks: AttentionHooks) -> Iterator[Tensor]:
        """Forward and backward passes: for every draw, or once without gradients, the logits `[tokens, vocabulary]`."""
        nonlocal mask
        with hooks, frozen(model), torch.set_grad_enabled(gradients):
            for batch in batches(ordered, size, model, done=sums.done[number]):
                mask = batch["mask"]
                logits = forced_logits(model, batch, encoder)[mask]
                if not gradients:
                    yield logits
                else:
                    for draw, projection in enumerate(_projections(logits.detach(), draws, generator)):
                        hooks.slopes.clear()
                        logits.backward(projection, retain_graph=draw < draws - 1)
                        yield logits.detach()
                sums.done[number] += 1
                bar.update()
                sums.random = generator.get_state()
                if interrupted is not None:
                    interrupted.offer(sums.content())

    def of_text(states: Tensor, name: str) -> Tensor:
        return states[mask] if ".decoder." in name else states.flatten(0, 1)

    def see_query(name: str, output: Tensor) -> None:
        attention = attentions[name]
        query = of_text(output, name).double() * attention.scaling
        query = query.unflatten(-1, (attention.num_heads, -1)).transpose(0, 1)
        count, total = sums.queries[name]
        sums.queries[name] = (count + query.shape[1], total.to(query) + query.transpose(1, 2) @ query)

    hooks = AttentionHooks(
        attentions, lambda place, states: sums.inputs[place].update(of_text(states, place)), see_query, gradients
    )
    for logits in passes(0, hooks):
        sums.predicted += logits.shape[0]
        for place, slope in hooks.slopes.items():
            rows = slope.flatten(0, 1)
            sums.fishers[place] = sums.fishers[place] + rows.T @ rows
    factors: dict[str, KroneckerFactors] = {}
    if gradients:
        kronecker = {
            place: KroneckerSums(sums.fishers[place] / sums.predicted, seen.mean, seen.covariance)
            for place, seen in sums.inputs.items()
        }
        for place, found in kronecker.items():
            found.sums = sums.turns.setdefault(place, found.sums)
        states: dict[str, Tensor] = {}
        hooks = AttentionHooks(attentions, states.__setitem__)
        for _ in passes(1, hooks):
            for place, slope in hooks.slopes.items():
                kronecker[place].update(states[place], slope)
        factors = {place: found.factors.to("cpu") for place, found in kronecker.items()}
    bar.close()
    statistics = Statistics(
        inputs={
            place: InputStatistics(
                seen.count,
                seen.mean.cpu(),
                seen.covariance.cpu(),
                sums.fishers[place].cpu() / sums.predicted if gradients else None,
                factors.get(place),
            )
            for place, seen in sums.inputs.items()
        },
        queries={name: (total / count).cpu() for name, (count, total) in sums.queries.items()},
    )
    for place, gathered in statistics.inputs.items():
        parts = [gathered.mean, gathered.covariance, gathered.gradient]
        if gathered.kronecker is not None:
            parts += [gathered.kronecker.gradient, gathered.kronecker.covariance]
        if not all(torch.isfinite(part).all() for part in parts if part is not None):
            raise ValueError(f"The activations at {place} are NaN or infinite: calibrate in float32 (dtype).")
    return statistics


def batch_size_for(model: PreTrainedModel, encoder_gradients: bool) -> int:
    """Clips at once: 4, or fewer if what the encoder keeps for its gradients would be more than some 4 GB."""
    config = model.config
    kept = 40 * config.encoder_layers * config.max_source_positions * config.d_model  # 10 float32 vectors per frame
    return max(min(4, 4 * 10**9 // kept), 1) if encoder_gradients else 4


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter of the model asks for gradients meanwhile."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def _projections(logits: Tensor, draws: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Random vectors `[tokens, vocabulary]` with covariance `diag(p) - p p^T`, the Fisher information of the logits."""
    probabilities = logits.softmax(dim=-1)
    roots = probabilities.sqrt()
    for _ in range(draws):
        # Signs instead of normal numbers: the same covariance, less noise in the estimate.
        scaled = torch.empty_like(roots).bernoulli_(generator=generator).mul_(2).sub_(1).mul_(roots)
        yield scaled.sub_(probabilities * scaled.sum(dim=-1, keepdim=True))
