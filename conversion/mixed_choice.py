"""Bits of principal directions of all latents, chosen under a budget by the Fisher information of the predictions."""

from dataclasses import replace

from transformers import WhisperForConditionalGeneration

from whisper_mla.configuration.cache_size import cache_size
from whisper_mla.configuration.configuration_whisper_mla import MIXED, WhisperMLAConfig

from .calibration.calibrate import check_vectors
from .methods.factorise import Decompositions, compute_device
from .plan import Plan
from .ranks.bit_allocation import allocate_bits
from .ranks.budget import parse_bytes
from .source.latents import latents_of
from .stages import Chosen, Evidence, set_goal

# Bits of a value of every latent, where there is no budget.
DEFAULT_BITS = 3.5
# Of the covariance, see `fisher`. It gives the sizes of directions too, and two minutes of audio have to do for all of
# them, so that it is more than a rank alone needs.
DAMPING = 0.1


def choose_bits(plan: Plan, stock: WhisperForConditionalGeneration, evidence: Evidence) -> tuple[Plan, Chosen]:
    """The plan with bits and ranks of mixed latents settled: under `cache_cut` or `cache_bytes`, or else at
    `DEFAULT_BITS` per value of `d_model` at every position.

    Args:
        plan: of `latent_dtype="mixed"`.
        stock: the model to convert.
        evidence: with statistics.

    Raises:
        ConversionError: the budget cannot be met.
    """
    goal = set_goal(plan, stock)
    device = compute_device(stock)
    options = {"damping": DAMPING, **plan.options}
    decompositions = Decompositions(plan.method, options, stock.state_dict(), evidence.statistics, device)
    cached = [latent for latent in goal.latents if latent.positions]
    width, group_size = stock.config.d_model, goal.config.latent_group_size
    costs = {
        latent: decompositions.of(latent, width, keep=True).singular_values.square()[: width // group_size * group_size]
        for latent in cached
    }
    bits = allocate_bits(costs, _bytes(plan, stock, sum(latent.positions for latent in cached)), group_size)
    text = [bits[latent] for latent in cached if not latent.is_cross]
    audio = next(bits[latent] for latent in cached if latent.is_cross)
    fields = {
        **plan.latent_fields,
        "latent_dtype": MIXED,
        "kv_bits": text,
        "cross_kv_bits": audio,
        "kv_rank": [group_size * len(row) for row in text],
        "cross_kv_rank": group_size * len(audio),
    }
    plan = replace(plan, latent_fields=fields)
    config = WhisperMLAConfig.from_whisper_config(stock.config, **fields)
    goal = replace(goal, config=config, latents=latents_of(config))
    if evidence.statistics is not None and not plan.bundled:
        check_vectors(evidence.statistics, goal.low_rank, force=True)
    return plan, Chosen(goal, options)


def _bytes(plan: Plan, stock: WhisperForConditionalGeneration, positions: int) -> float:
    budget = plan.budget
    if budget.cache_bytes is not None:
        return parse_bytes(budget.cache_bytes)
    if budget.cache_cut is None:
        return DEFAULT_BITS / 8 * stock.config.d_model * positions
    sizes = {"positions": stock.config.max_target_positions, "bytes_per_value": stock.dtype.itemsize}
    return (1 - budget.cache_cut) * cache_size(stock.config, **sizes).total


__all__ = ["choose_bits"]
