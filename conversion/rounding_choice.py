"""What cached latents are stored in, chosen together with their ranks under a budget, by what words they would change.

KL divergence per byte is the currency: fewer bits leave bytes for higher ranks. Each pair of dtypes gets the ranks that
the budget pays at it; the models are then measured as they would run, rounding included.
"""

from dataclasses import replace
from itertools import product

from transformers import WhisperForConditionalGeneration
from transformers.utils import logging
from transformers.utils.logging import tqdm

from whisper_mla.configuration.cache_size import cache_size
from whisper_mla.modeling_whisper_mla import WhisperMLAForConditionalGeneration

from .build import build
from .calibration.calibrate import running_copy
from .errors import ConversionError
from .mixed_choice import choose_bits
from .plan import Plan
from .stages import Chosen, Evidence, choose, find_factors, set_goal

logger = logging.get_logger(__name__)
_DTYPES = (None, "int8", "int4")


def choose_rounding(
    plan: Plan,
    stock: WhisperForConditionalGeneration,
    running: WhisperForConditionalGeneration,
    evidence: Evidence,
) -> tuple[Plan, Chosen]:
    """The plan with the dtypes of latents settled, and the ranks: of what is within the budget the closest to stock.

    Under `max_kl` the smallest cache of what is within it.

    Args:
        plan: where it does not choose the rounding, ranks alone are chosen.
        stock: the model to convert.
        running: the same in float32, which is changed and restored.
        evidence: with held-out audio, if the rounding is to be chosen.

    Raises:
        ConversionError: the budget cannot be met, or there is no held-out audio to choose the rounding on.
    """
    if plan.mixes_bits:
        return choose_bits(plan, stock, evidence)
    if not plan.chooses_rounding:
        return plan, choose(plan, set_goal(plan, stock), stock, running, evidence)
    if evidence.held_out is None:
        raise ConversionError("latent_dtype='auto': is chosen on held-out audio. Give calibration=…, or a dtype.")
    refused: list[ConversionError] = []
    tried: list[tuple[float, float, Plan, Chosen]] = []
    for text, audio in tqdm(list(product(_DTYPES, repeat=2)), desc="Choosing ranks and bits", unit="pair"):
        candidate = replace(plan, latent_fields={**plan.latent_fields, "latent_dtype": [text, audio]})
        try:
            chosen = choose(candidate, set_goal(candidate, stock), stock, running, evidence)
        except ConversionError as error:
            refused.append(error)
            continue
        found = find_factors(candidate, chosen, stock, running, evidence)
        model = build(stock, True, chosen.goal.config, found.items, WhisperMLAForConditionalGeneration)
        kl = evidence.held_out.measure(running_copy(model), not any(i.latent.in_encoder for i in found.items)).kl
        positions = model.config.max_target_positions
        size = cache_size(model.config, positions=positions, bytes_per_value=stock.dtype.itemsize).total
        logger.info(f"latent_dtype={[text, audio]}: KL to stock {kl:.2g}, {size:,} bytes")
        if plan.budget.max_kl is None:
            tried.append((kl, size, candidate, chosen))
        elif kl <= plan.budget.max_kl:
            tried.append((size, kl, candidate, chosen))
    if not tried:
        raise refused[-1] if refused else ConversionError(f"max_kl={plan.budget.max_kl}: rounding latents breaks it.")
    _, _, settled, chosen = min(tried, key=lambda trial: trial[:2])
    assert chosen.choice is not None
    names = " and ".join(name or str(stock.dtype).removeprefix("torch.") for name in chosen.goal.config.latent_dtypes)
    reason = f"{names} latents (text and audio) of {len(tried)} pairs within the budget; {chosen.choice.reason}"
    return settled, replace(chosen, choice=replace(chosen.choice, reason=reason))


__all__ = ["choose_rounding"]
