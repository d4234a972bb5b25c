"""A budget of cache bytes or of quality, as a user states it."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from whisper_mla.conversion.errors import ConversionError
from whisper_mla.conversion.source.latents import Latent

from .rank_allocation import allowed_ranks

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True)
class Budget:
    """What the user allows; exactly one of the first three.

    Attributes:
        cache_cut: share of the stock decode cache to save, above 0 and below 1.
        cache_bytes: bytes of the decode cache of one stream, or a text such as "12MB".
        max_kl: KL divergence to stock per token on held-out audio, in nats.
        rank_multiple: ranks are multiples of it; None: 16, or 4 where d_model is below 512.
        min_rank, max_rank: bounds for every latent; None: none.
    """

    cache_cut: float | None = None
    cache_bytes: int | str | None = None
    max_kl: float | None = None
    rank_multiple: int | None = None
    min_rank: int | None = None
    max_rank: int | None = None

    @property
    def is_given(self) -> bool:
        """Whether there is a budget at all."""
        return any(value is not None for value in (self.cache_cut, self.cache_bytes, self.max_kl))

    def check(self) -> None:
        """Raise `ConversionError` where a value makes no sense."""
        goals = {"cache_cut": self.cache_cut, "cache_bytes": self.cache_bytes, "max_kl": self.max_kl}
        given = {name: value for name, value in goals.items() if value is not None}
        if len(given) > 1:
            raise ConversionError(f"{', '.join(given)}: give one of them.")
        if self.cache_cut is not None and not (_is_number(self.cache_cut) and 0 < self.cache_cut < 1):
            raise ConversionError(f"cache_cut={self.cache_cut!r}: expected a share between 0 and 1, such as 0.95.")
        if self.max_kl is not None and not (_is_number(self.max_kl) and 0 < self.max_kl < float("inf")):
            raise ConversionError(f"max_kl={self.max_kl!r}: expected a positive number of nats, such as 0.01.")
        if self.cache_bytes is not None and parse_bytes(self.cache_bytes) < 1:
            raise ConversionError(f"cache_bytes={self.cache_bytes}: expected at least one byte.")
        for name in ("rank_multiple", "min_rank", "max_rank"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConversionError(f"{name}={value!r}: expected an integer, at least 1.")
            if value is not None and not given:
                raise ConversionError(f"{name}={value!r}: only with cache_cut, cache_bytes or max_kl.")

    def multiple(self, width: int, latent: Latent | None = None) -> int:
        """What ranks in a model of `width` are multiples of: for a rounded latent, of its groups too."""
        multiple = self.rank_multiple or (16 if width >= 512 else 4)
        return multiple if latent is None or latent.bits is None else math.lcm(multiple, latent.group_size)

    def ranks(self, width: int, latent: Latent | None = None) -> list[int]:
        """The ranks to choose from in a model of `width`.

        Raises:
            ConversionError: there are none.
        """
        try:
            multiple = self.multiple(width, latent)
            return allowed_ranks(width, self.min_rank or 1, min(self.max_rank or width, width), multiple)
        except ValueError as error:
            raise ConversionError(str(error)) from error

    def bytes_for(
        self, latents: Sequence[Latent], width: int, stock_bytes: int, fixed_bytes: float, bytes_per_value: int
    ) -> float | None:
        """What latents whose rank is to be chosen may cost; None for `max_kl`.

        Args:
            latents: those whose rank is to be chosen.
            width: of the model.
            stock_bytes: decode cache of the stock model, one stream.
            fixed_bytes: what latents of given ranks need.
            bytes_per_value: of the model's dtype.

        Raises:
            ConversionError: the smallest ranks need more; the message says how much.
        """
        if self.max_kl is not None:
            return None
        if self.cache_bytes is not None:
            goal, limit = f"cache_bytes={self.cache_bytes}", parse_bytes(self.cache_bytes)
        else:
            goal, limit = f"cache_cut={self.cache_cut}", int(stock_bytes * (1 - (self.cache_cut or 0)))
        lowest = [self.ranks(width, latent)[0] for latent in latents]
        costs = [rank * latent.bytes_per_rank(bytes_per_value) for rank, latent in zip(lowest, latents, strict=True)]
        smallest = fixed_bytes + sum(costs)
        if smallest > limit:
            raise ConversionError(
                f"{goal}: cannot be met. The smallest possible cache is {smallest:,.0f} bytes (a cut of "
                f"{1 - smallest / stock_bytes:.4f}), at rank {min(lowest)}; see min_rank and rank_multiple."
            )
        return limit - fixed_bytes


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def parse_bytes(size: int | str) -> int:
    """ "12MB" to 12,000,000; KiB, MiB and GiB are powers of 1024.

    Raises:
        ConversionError: not a size.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)\s*", str(size))
    if not match or match[2].lower() not in _UNITS:
        raise ConversionError(f"cache_bytes={size!r}: expected bytes, or a size such as 12MB or 1.5GiB.")
    return int(float(match[1]) * _UNITS[match[2].lower()])


__all__ = ["Budget", "parse_bytes"]
