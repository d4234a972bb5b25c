"""Statistics of what attention reads: streaming moments, and those of every place where a latent can be."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from whisper_mla.conversion.source.latents import Latent, input_name

from .examples import Example
from .kronecker import KroneckerFactors
from .moments import Moments


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
    kronecker: KroneckerFactors | None = None


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

        Args:
            latent: of the model that the statistics are of.

        Raises:
            ValueError: the statistics do not cover it.
        """
        name = input_name(latent.attentions[0])
        missing = [key for key in latent.attentions if key not in self.queries]
        if missing or name not in self.inputs:
            remedy = ", with encoder=True (--encoder)" if latent.in_encoder else ""
            raise ValueError(f"The statistics do not cover {latent.name}: calibrate this model again{remedy}.")
        of_input = self.inputs[name]
        query = torch.stack([self.queries[attention] for attention in latent.attentions])
        return Moments(of_input.count, of_input.mean, of_input.covariance, query, of_input.gradient, of_input.kronecker)
