"""Convert a stock Whisper into a Whisper-MLA model."""

import copy
import os
import time
from typing import Any, cast

import torch
from transformers import PreTrainedModel, WhisperForConditionalGeneration
from transformers.utils import logging

from whisper_mla.configuration.cache_size import cache_size
from whisper_mla.configuration.configuration_whisper_mla import WhisperMLAConfig
from whisper_mla.modeling_whisper_mla import WhisperMLAForConditionalGeneration

from .calibration.calibrate import NO_PROCESSOR, calibrate, check_vectors, read_calibration, running_copy
from .calibration.statistics import Statistics
from .errors import ConversionError
from .methods import METHODS, needs_moments
from .methods.apply_factors import replacement_weights
from .methods.factorise import Decompositions, Factorised, factorise
from .methods.method_options import method_options
from .ranks.budget import Budget
from .ranks.option_search import search_option
from .ranks.quality import HeldOut
from .ranks.rank_choice import choose_ranks, with_ranks
from .refit.joint_refit import refit_if_better
from .refit.sequential import factorise_sequentially
from .report.record import conversion_record
from .report.report import conversion_report, peak_memory
from .source.latents import Latent, latents_of
from .source.loading import load_whisper, read_config
from .source.processor import load_processor

logger = logging.get_logger(__name__)


def from_whisper(
    source: str | os.PathLike | PreTrainedModel,
    *,
    kv_rank: int | list[int] | None = None,
    cross_kv_rank: int | list[int] | None = None,
    cross_kv_shared: bool = True,
    audio_kv_rank: int | list[int] | None = None,
    cross_cache: str = "latent",
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
        source: a Hub id, a folder (single or sharded weights), or a `WhisperForConditionalGeneration`, which is not
            modified and shares no memory with the result.
        kv_rank: values cached per text position in decoder self-attention, an integer or one per layer.
        cross_kv_rank: values kept per audio frame for cross-attention; None: the encoder output itself.
        cross_kv_shared: with `cross_kv_rank`: one latent for all layers, or one per layer.
        audio_kv_rank: rank of encoder self-attention; None: stock.
        cross_cache: "latent", or "key_value" for stock cross-attention.
        method: how low-rank projections are found, see `METHODS`; None: "fisher" with calibration, "joint_svd" without.
        calibration: audio of the kind that the model will hear, for methods that need it and to measure the result: a
            folder, files, 16 kHz float arrays, a `datasets` dataset, or a statistics file (see `calibrate`).
        processor: of the source, for calibration; None: the one in its folder.
        language, task: of the calibration audio; None: the model's default, or detected.
        refit: fit the up projections of all decoder layers together to the stock model's predictions on the calibration
            audio, see `refit_jointly`; up to 50 times over it, forward with derivatives, forward and backward. None:
            where it is possible and lowers the KL divergence on held-out audio. True: in any case; needs
            `method="fisher"`, a low rank in the decoder, and audio, which a statistics file has no more; not with
            `max_kl`, which it could break.
        sequential: find each latent on what the converted layers below deliver, and refit the up projections to it.
        force: go on with fewer calibration vectors than the ranks need, for methods that depend on them.
        cache_cut, cache_bytes, max_kl, rank_multiple, min_rank, max_rank: choose `kv_rank` and `cross_kv_rank`, or the
            one that is not given, under a budget, see `Budget`. The cache is that of one stream at full length, in the
            dtype of the weights. `cross_kv_rank=d_model` keeps cross-attention exact.
        model_class: the class to build, `WhisperMLAForConditionalGeneration` or a subclass.
        kwargs: options of the method (`damping`, `preserved_key_dims`, …); the rest for `from_pretrained` of the source
            (`dtype`, `revision`, `device_map`, …). The dtype defaults to the checkpoint's.

    Returns:
        WhisperMLAForConditionalGeneration: in evaluation mode, with the dtype, device and generation config of the
        source, and two dictionaries: `conversion_record` (saved as conversion.json) and `conversion_report` (see
        `write_report`). Factors are computed in float64.

    Raises:
        ConversionError: the source cannot be converted (see `load_whisper`), calibration audio cannot be used or is too
            little for the ranks, or a budget cannot be met.
        ValueError: an unknown method, option or argument, or a rank out of range or of wrong length; raised before
            weights are loaded.
    """
    started = time.monotonic()
    method = method or ("joint_svd" if calibration is None else "fisher")
    if method not in METHODS:
        raise ValueError(f"method={method!r}: expected one of {', '.join(map(repr, METHODS))}.")
    options = method_options(method, kwargs)
    if refit and (method != "fisher" or sequential):
        other = "sequential=True" if sequential else f"method={method!r}"
        raise ValueError(f"refit=True: needs method='fisher', with calibration audio, not {other}.")
    if refit and max_kl is not None:
        raise ValueError("refit=True: could break max_kl. Leave it out: a refit that lowers the KL is taken anyway.")
    may_refit = method == "fisher" and not sequential and refit is not False
    needs_audio = needs_moments(method) or options.get("preserved_key_selection") == "2-norm" or sequential
    budget = Budget(cache_cut, cache_bytes, max_kl, rank_multiple, min_rank, max_rank)
    budget.check()
    if budget.is_given and (not cross_kv_shared or cross_cache != "latent"):
        raise ConversionError(
            "A budget needs the shared cross-attention latent: leave out cross_kv_shared, cross_cache."
        )
    if budget.is_given and kv_rank is not None and cross_kv_rank is not None:
        raise ConversionError("A budget chooses kv_rank, cross_kv_rank, or both: give one of them at most.")
    if budget.is_given and options.get("preserved_key_dims"):
        raise ConversionError("preserved_key_dims needs given ranks (kv_rank): leave out the budget.")
    has_rank = not (kv_rank is None and cross_kv_rank is None and audio_kv_rank is None)
    if calibration is not None and not has_rank and not budget.is_given:
        raise ValueError(
            "calibration: has nothing to calibrate, the conversion is exact. Give kv_rank, cross_kv_rank, "
            "audio_kv_rank or a budget, or leave it out."
        )
    if refit and calibration is None:
        raise ValueError("refit=True: needs calibration audio: calibration=….")
    if (max_kl is not None or needs_audio) and calibration is None:
        name = "max_kl" if max_kl is not None else "sequential=True" if sequential else f"method={method!r}"
        raise ValueError(f"{name} needs calibration audio or a statistics file: calibration=….")
    latent_fields: dict[str, Any] = {
        "kv_rank": kv_rank,
        "cross_kv_rank": cross_kv_rank,
        "cross_kv_shared": cross_kv_shared,
        "audio_kv_rank": audio_kv_rank,
        "cross_cache": cross_cache,
    }
    # All that can be refused without the weights is refused before they are loaded.
    config = WhisperMLAConfig.from_whisper_config(read_config(source, **kwargs), **latent_fields)
    lossy = budget.is_given or any(latent.rank < config.d_model for latent in latents_of(config))
    if budget.is_given:
        budget.ranks(config.d_model)
    elif refit and not any(latent.rank < config.d_model for latent in latents_of(config) if not latent.in_encoder):
        raise ValueError("refit=True: nothing in the decoder to refit. Give kv_rank, cross_kv_rank or a budget.")
    if lossy and calibration is not None:
        calibration = read_calibration(calibration)
        if not isinstance(calibration, Statistics):
            processor = processor or _processor_of(source, kwargs)
            if processor is None:
                raise ConversionError(NO_PROCESSOR)
        elif (sequential or refit) and not calibration.examples:
            name = "sequential=True" if sequential else "refit=True"
            raise ConversionError(f"{name}: needs calibration audio (calibration=), not a statistics file.")

    stock = load_whisper(source, **kwargs)
    config = WhisperMLAConfig.from_whisper_config(stock.config, **latent_fields)
    latents = latents_of(config)
    size, free, spendable = stock.dtype.itemsize, [], None
    if budget.is_given:
        given = [kv_rank, cross_kv_rank]
        free = [latent for latent in latents if latent.positions and given[latent.is_cross] is None]
        stock_bytes = cache_size(stock.config, positions=config.max_target_positions, bytes_per_value=size).total
        fixed = sum(latent.rank * latent.positions * size for latent in latents if latent not in free)
        spendable = budget.bytes_for(free, config.d_model, stock_bytes, fixed, size)
    statistics = held_out = choice = None
    running = stock
    if lossy and calibration is not None:
        running = running_copy(stock)
        statistics = calibrate(
            stock,
            calibration,
            processor,
            language=language,
            task=task,
            gradients=method == "fisher",
            encoder=any(latent.in_encoder and latent.rank < config.d_model for latent in latents),
        )
        held_out = HeldOut(running, statistics.held_out) if statistics.held_out else None
    weights = stock.state_dict()
    device = _compute_device(stock)
    if budget.is_given:
        decompositions = Decompositions(method, options, weights, statistics, device)
        others = [latent for latent in latents if latent not in free and latent.rank < config.d_model]
        choice = choose_ranks(budget, free, decompositions, running, held_out, others, spendable, size)
        latents, options = with_ranks(latents, choice), choice.options
        config = _configuration(stock, latents, latent_fields)
    low_rank = [latent for latent in latents if latent.rank < config.d_model]
    if statistics is not None and needs_audio:
        check_vectors(statistics, low_rank, force)
    options, tried = search_option(method, options, running, low_rank, statistics, held_out, device)
    decompositions = Decompositions(method, options, weights, statistics, device)
    if sequential and low_rank:
        found = factorise_sequentially(running, low_rank, decompositions)
    else:
        found = factorise(low_rank, decompositions)
    refitting = None
    if may_refit and statistics is not None:
        found, refitting = refit_if_better(running, found, statistics, options, held_out, always=bool(refit))

    del running  # which may be another copy of the weights
    model = _build(stock, stock is source, config, found, model_class)
    quality = None
    if held_out is not None and found:
        same_encoder = not any(item.latent.in_encoder for item in found)
        quality = held_out.measure(running_copy(model), same_encoder)
        if max_kl is not None and quality.kl > 1.01 * max_kl:  # less is the noise of measuring twice
            logger.warning(
                f"max_kl={max_kl}: was met before the weights were rounded to {model.dtype}; "
                f"the model has {quality.kl:.3g}."
            )
    facts = {
        "method": method if found else "exact",
        "method_options": options if found else {},
        "option_search": tried or (choice.tried if choice is not None else []),
        "sequential": sequential and bool(found),
        "refit": refitting,
        "rank_choice": None if choice is None else {"allocation": choice.allocation, "reason": choice.reason},
        "seconds": round(time.monotonic() - started, 1),
        "peak_memory_bytes": peak_memory(device),
    }
    report = conversion_report(stock, model, found, statistics, quality, choice, facts)
    model.conversion_report = cast(Any, report)
    model.conversion_record = conversion_record(
        source, stock, model.config, statistics, found, facts, report["quality"], kwargs
    )
    return model


def _build(
    stock: WhisperForConditionalGeneration,
    copy_weights: bool,
    config: WhisperMLAConfig,
    found: list[Factorised],
    model_class: type[WhisperMLAForConditionalGeneration],
) -> WhisperMLAForConditionalGeneration:
    config.dtype = stock.dtype
    if stock.config._attn_implementation in ("eager", "sdpa", "flex_attention"):
        config._attn_implementation = stock.config._attn_implementation
    weights = dict(stock.state_dict())
    weights.update(replacement_weights(found, weights))
    if copy_weights:
        weights = {name: tensor.clone() for name, tensor in weights.items()}
    with torch.device("meta"):
        model = model_class(config)
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.generation_config = copy.deepcopy(stock.generation_config)
    return model.eval()


def _configuration(
    stock: WhisperForConditionalGeneration, latents: list[Latent], latent_fields: dict[str, Any]
) -> WhisperMLAConfig:
    """The configuration with the ranks that a budget chose; an equal rank in all layers is written as one number."""
    width = stock.config.d_model
    ranks = [latent.rank for latent in latents if latent.name.startswith("decoder.layers.")]
    cross = next(latent.rank for latent in latents if latent.name == "decoder.encoder_attn")
    kv_rank: int | list[int] | None = ranks if len(set(ranks)) > 1 else ranks[0]
    chosen = {"kv_rank": None if kv_rank == width else kv_rank, "cross_kv_rank": None if cross == width else cross}
    return WhisperMLAConfig.from_whisper_config(stock.config, **{**latent_fields, **chosen})


def _compute_device(stock: WhisperForConditionalGeneration) -> torch.device:
    """Where the model is, or a CUDA or XPU device: others have no float64."""
    if stock.device.type in ("cuda", "xpu"):
        return stock.device
    for name in ("cuda", "xpu"):
        if getattr(torch, name).is_available():
            return torch.device(name)
    return torch.device("cpu")


def _processor_of(source, kwargs: dict[str, Any]):
    """The processor that belongs to the source; for a model in memory, the one where it was loaded from."""
    if not isinstance(source, PreTrainedModel):
        return load_processor(source, **_hub_arguments(kwargs))
    name = source.config._name_or_path
    try:
        return load_processor(name) if name else None
    except ConversionError:
        return None


def _hub_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    names = ("cache_dir", "local_files_only", "token", "revision", "subfolder")
    return {name: arguments[name] for name in names if name in arguments}


__all__ = ["METHODS", "from_whisper"]
