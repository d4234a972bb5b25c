"""Convert a stock Whisper into a Whisper-MLA model."""

import os
import time
from typing import Any, cast

from transformers import PreTrainedModel

from whisper_mla.modeling_whisper_mla import WhisperMLAForConditionalGeneration

from . import stages
from .build import build
from .calibration.calibrate import running_copy
from .plan import Plan
from .presets import with_preset
from .ranks.budget import Budget
from .rounding_choice import choose_rounding
from .source.generation_fields import complete_generation_config
from .source.loading import load_whisper


def from_whisper(
    source: str | os.PathLike | PreTrainedModel,
    *,
    kv_rank: int | list[int] | None = None,
    cross_kv_rank: int | list[int] | None = None,
    cross_kv_shared: bool = True,
    audio_kv_rank: int | list[int] | None = None,
    cross_cache: str = "latent",
    latent_dtype: str | list[str | None] | None = None,
    latent_group_size: int | None = None,
    preset: str | None = None,
    method: str | None = None,
    calibration: Any = None,
    processor: Any = None,
    language: str | None = None,
    task: str | None = None,
    refit: bool | None = None,
    sequential: bool = False,
    force: bool = False,
    cache_cut: float | None = None,
    cache_bytes: int | str | None = None,
    max_kl: float | None = None,
    rank_multiple: int | None = None,
    min_rank: int | None = None,
    max_rank: int | None = None,
    model_class: type[WhisperMLAForConditionalGeneration] = WhisperMLAForConditionalGeneration,
    **kwargs,
) -> WhisperMLAForConditionalGeneration:
    """Convert a pretrained Whisper. Without a rank or a budget the conversion is exact: same outputs, same tokens.

    Args:
        source: a Hub id, a folder, or a `WhisperForConditionalGeneration`, which is neither modified nor shared.
        kv_rank: values cached per text position in decoder self-attention, an integer or one per layer.
        cross_kv_rank: values kept per audio frame for cross-attention; None: the encoder output itself.
        cross_kv_shared: with `cross_kv_rank`: one latent for all layers, or one per layer.
        audio_kv_rank: rank of encoder self-attention; None: stock.
        cross_cache: "latent", or "key_value" for stock cross-attention.
        latent_dtype: of cached latents, see `WhisperMLAConfig`: "int8", "int4", or two for text and audio; None: the
            model's; "auto": chosen with the ranks under a budget; "mixed": bits by direction, see `choose_bits`.
        latent_group_size: values rounded together; None: 64 for int8 of given ranks that it divides, else 32.
        preset: instead of ranks and `latent_dtype`: a name of `PRESETS`, see `with_preset`.
        method: how low-rank projections are found, see `METHODS`; None: "fisher". Named, without calibration, the
            result is not measured.
        calibration: audio of the kind that the model will hear, for methods that need it and to measure the result: a
            folder, files, 16 kHz float arrays, a `datasets` dataset, or a statistics file (see `calibrate`). None: two
            minutes of English that come with the package; "joint_svd", not measured, with a warning, where the model
            does not understand them or has no processor.
        processor, language, task: for calibration audio; None: that in the source's folder; its defaults, or detected.
        refit: fit the up projections of all decoder layers together to the stock model's predictions on the calibration
            audio, see `refit_jointly`; up to 50 times over it, forward with derivatives, forward and backward. None:
            where it is possible and lowers the KL divergence on held-out audio. True: in any case; needs
            `method="fisher"`, a low rank in the decoder, and audio (no statistics file); not with `max_kl`.
        sequential: find each latent on what the converted layers below deliver, and refit up projections to it.
        force: go on with fewer calibration vectors than the ranks need, or with over 5 % of stock's words changed.
        cache_cut, cache_bytes, max_kl, rank_multiple, min_rank, max_rank: choose `kv_rank` and `cross_kv_rank`, or the
            one not given, under a budget for one stream at full length, see `Budget`. `cross_kv_rank=d_model` is exact.
        model_class: the class to build, `WhisperMLAForConditionalGeneration` or a subclass.
        kwargs: options of the method (`damping`, `preserved_key_dims`, …); the rest for `from_pretrained` of the source
            (`dtype`, `revision`, `device_map`, …). The dtype defaults to the checkpoint's.

    Returns:
        WhisperMLAForConditionalGeneration: in evaluation mode, with the dtype, device and generation config of the
        source, and two dictionaries: `conversion_record` (saved as conversion.json) and `conversion_report` (see
        `write_report`). Factors are computed in float64.

    Raises:
        ConversionError: the source cannot be converted (see `load_whisper`), calibration audio cannot be used or is too
            little for the ranks, a budget cannot be met, or more than 5 % of the stock model's own words change.
        ValueError: an unknown argument, or a value out of range; raised before weights are loaded.
    """
    started = time.monotonic()
    fields: dict[str, Any] = {"kv_rank": kv_rank, "cross_kv_rank": cross_kv_rank, "audio_kv_rank": audio_kv_rank}
    fields |= {"cross_kv_shared": cross_kv_shared, "cross_cache": cross_cache, "latent_dtype": latent_dtype}
    fields |= {} if latent_group_size is None else {"latent_group_size": latent_group_size}
    budget = Budget(cache_cut, cache_bytes, max_kl, rank_multiple, min_rank, max_rank)
    audio = {"calibration": calibration, "processor": processor, "language": language, "task": task}
    how = {"refit": refit, "sequential": sequential, "force": force}
    fields = with_preset(preset, fields, budget.is_given)
    plan = Plan.from_arguments(source, fields, budget, kwargs, method=method, **how, **audio)

    stock = load_whisper(source, **plan.loading)
    goal = stages.set_goal(plan, stock)
    running = stock if plan.calibration is None else running_copy(stock)
    plan = stages.with_bundled_speech(plan, running)
    evidence = stages.gather(plan, goal, stock, running)
    plan, chosen = choose_rounding(plan, stock, running, evidence)
    found = stages.find_factors(plan, chosen, stock, running, evidence)
    found = stages.refit(plan, running, evidence, found)
    del running  # which may be another copy of the weights
    model = build(stock, stock is source, chosen.goal.config, found.items, model_class)
    model.generation_config = complete_generation_config(source, stock, plan.processor, plan.loading)
    quality = stages.measure(plan, model, evidence, found)
    report = stages.report(plan, chosen, stock, model, evidence, found, quality, started)
    model.conversion_report, model.conversion_record = cast(Any, report)
    return model


__all__ = ["from_whisper"]
