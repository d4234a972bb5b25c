"""The one option of a method that held-out audio settles, by a short search."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import WhisperForConditionalGeneration
from transformers.utils.logging import tqdm

from whisper_mla.conversion.calibration.statistics import Statistics
from whisper_mla.conversion.methods.apply_factors import approximated
from whisper_mla.conversion.methods.factorise import Decompositions
from whisper_mla.conversion.source.latents import Latent

from .quality import HeldOut

# Options that a short search on held-out audio settles unless they are given.
SEARCHED = {"attention": ("balance", (0.25, 0.5, 1.0, 2.0, 4.0)), "fisher": ("floor", (0.01, 0.1, 1.0))}


def searched_options(method: str, options: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """All completions of a method's options by the values to search; the name is empty where nothing is searched."""
    name, values = SEARCHED.get(method, ("", ()))
    if not name or name in options:
        return "", [options]
    return name, [{**options, name: value} for value in values]


def search_option(
    method: str,
    options: dict[str, Any],
    stock: WhisperForConditionalGeneration,
    latents: Sequence[Latent],
    statistics: Statistics | None,
    held_out: HeldOut | None,
    device: torch.device,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Settle the one option of a method that held-out audio should decide.

    Args:
        method, options: as given by the user.
        stock: in float32.
        latents: at their ranks.
        statistics, held_out: None where there is no calibration.
        device: where to factorise.

    Returns:
        tuple: the options, completed; and what was tried: the option's value and the KL that it gave.
    """
    name, completions = searched_options(method, options)
    if not name or held_out is None or not latents:
        return options, []
    same_encoder = not any(latent.in_encoder for latent in latents)
    tried = []
    for completed in tqdm(completions, desc=f"Searching {name}", unit="value"):
        decompositions = Decompositions(method, completed, stock.state_dict(), statistics, device)
        with approximated(stock, {latent: decompositions.of(latent, latent.rank) for latent in latents}):
            tried.append({name: completed[name], "kl": held_out.measure(stock, same_encoder).kl})
    best = min(tried, key=lambda trial: trial["kl"])
    return {**options, name: best[name]}, tried
