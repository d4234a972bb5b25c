"""The stages of a conversion, each from values to a value. `from_whisper` calls them in this order."""

import time
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import WhisperForConditionalGeneration
from transformers.utils import logging

from whisper_mla.configuration.cache_size import cache_size
from whisper_mla.configuration.configuration_whisper_mla import WhisperMLAConfig
from whisper_mla.modeling_whisper_mla import WhisperMLAForConditionalGeneration

from .build import configuration_with_ranks
from .calibration.bundled_speech import HELD_OUT as BUNDLED_HELD_OUT
from .calibration.bundled_speech import MEASURED_ON, read_bundled_speech, spoken
from .calibration.calibrate import HELD_OUT, calibrate, check_vectors, hold_out, running_copy
from .calibration.statistics import Statistics
from .calibration.word_changes import count_word_changes
from .methods.factorise import Decompositions, Factorised, compute_device, factorise
from .methods.mixed_factors import for_mixed_bits
from .plan import BUNDLED, Plan
from .ranks.option_search import search_option
from .ranks.quality import HeldOut, Quality, refuse_changes
from .ranks.rank_choice import RankChoice, choose_ranks, with_ranks
from .refit.joint_refit import refit_if_better
from .refit.sequential import factorise_sequentially
from .report.record import conversion_record
from .report.report import conversion_report, peak_memory
from .source.latents import Latent, latents_of

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Goal:
    """What is to be found for the model that was loaded.

    Attributes:
        config: of the result; ranks that a budget is to choose are exact.
        latents: all of it, in the order in which the model computes them.
        free: those whose rank a budget is to choose.
        spendable: bytes for these; None without a budget, or where quality is what is bounded.
    """

    config: WhisperMLAConfig
    latents: list[Latent]
    free: list[Latent]
    spendable: float | None

    @property
    def low_rank(self) -> list[Latent]:
        """The latents that are not exact."""
        return [latent for latent in self.latents if not latent.is_exact(self.config.d_model)]


@dataclass(frozen=True)
class Evidence:
    """What calibration tells; both None without.

    Attributes:
        statistics: of what attention reads.
        held_out: clips that were kept apart, with the stock model's predictions.
        stock_tokens: what the stock model says of these clips; None where there is no tokenizer to make words of it.
    """

    statistics: Statistics | None = None
    held_out: HeldOut | None = None
    stock_tokens: list[list[int]] | None = None


@dataclass(frozen=True)
class Chosen:
    """What is to be found, once ranks are settled.

    Attributes:
        goal: at these ranks.
        options: of the method; completed where a budget settled one.
        choice: how a budget chose; None where ranks were given.
    """

    goal: Goal
    options: dict[str, Any]
    choice: RankChoice | None = None


@dataclass(frozen=True)
class Found:
    """Factors of all low-rank latents, and how they were found.

    Attributes:
        items: one for each.
        options: of the method, completed by what held-out audio settled.
        tried: values of the option that was searched, each with its KL divergence.
        refitting: what became of the joint refit, see `refit_if_better`.
    """

    items: list[Factorised]
    options: dict[str, Any]
    tried: list[dict[str, Any]] = field(default_factory=list)
    refitting: dict[str, Any] | None = None


def set_goal(plan: Plan, stock: WhisperForConditionalGeneration) -> Goal:
    """What the plan means for the model that was loaded, whose dtype says what a budget can pay.

    Raises:
        ConversionError: the smallest cache is larger than the budget.
    """
    config = WhisperMLAConfig.from_whisper_config(stock.config, **plan.latent_fields)
    latents = latents_of(config)
    if not plan.budget.is_given or plan.mixes_bits:
        return Goal(config, latents, [], None)
    given = [plan.latent_fields["kv_rank"], plan.latent_fields["cross_kv_rank"]]
    free = [latent for latent in latents if latent.positions and given[latent.is_cross] is None]
    size = stock.dtype.itemsize
    stock_bytes = cache_size(stock.config, positions=config.max_target_positions, bytes_per_value=size).total
    fixed = sum(latent.rank * latent.bytes_per_rank(size) for latent in latents if latent not in free)
    return Goal(config, latents, free, plan.budget.bytes_for(free, config.d_model, stock_bytes, fixed, size))


def with_bundled_speech(plan: Plan, running: WhisperForConditionalGeneration) -> Plan:
    """The plan with the bundled speech read, if it is to stand in; without audio, if the model cannot understand it."""
    if plan.calibration is not BUNDLED:
        return plan
    clips = read_bundled_speech(running, plan.processor)
    return plan.without_audio() if clips is None else replace(plan, calibration=clips, **spoken(running))


def gather(
    plan: Plan, goal: Goal, stock: WhisperForConditionalGeneration, running: WhisperForConditionalGeneration
) -> Evidence:
    """Run the stock model over the plan's audio, or take its statistics.

    Raises:
        ConversionError: see `calibrate`.
    """
    if plan.calibration is None:
        return Evidence()
    audio = (stock, plan.calibration, plan.processor)
    if goal.low_rank or plan.budget.is_given or plan.mixes_bits:
        statistics = calibrate(
            *audio,
            language=plan.language,
            task=plan.task,
            gradients=plan.method == "fisher",
            encoder=any(latent.in_encoder for latent in goal.low_rank),
            held_out=BUNDLED_HELD_OUT if plan.bundled else HELD_OUT,
        )
    else:  # rounding needs no statistics, and every clip can tell what it costs
        statistics = hold_out(*audio, language=plan.language, task=plan.task)
    if not statistics.held_out:
        return Evidence(statistics)
    held_out = HeldOut(running, statistics.held_out)
    return Evidence(statistics, held_out, None if plan.processor is None else held_out.decode(running, True))


def choose(
    plan: Plan,
    goal: Goal,
    stock: WhisperForConditionalGeneration,
    running: WhisperForConditionalGeneration,
    evidence: Evidence,
) -> Chosen:
    """The ranks: those given, or those that the budget pays.

    Raises:
        ConversionError: the quality asked for cannot be had, or there are too few vectors of calibration for the ranks.
    """
    chosen = Chosen(goal, plan.options)
    if plan.budget.is_given:
        statistics, device = evidence.statistics, compute_device(stock)
        decompositions = Decompositions(plan.method, plan.options, stock.state_dict(), statistics, device)
        others = [latent for latent in goal.low_rank if latent not in goal.free]
        size = stock.dtype.itemsize
        choice = choose_ranks(
            plan.budget, goal.free, decompositions, running, evidence.held_out, others, goal.spendable, size
        )
        latents = with_ranks(goal.latents, choice)
        config = configuration_with_ranks(stock.config, latents, plan.latent_fields)
        chosen = Chosen(replace(goal, config=config, latents=latents), choice.options, choice)
    if evidence.statistics is not None and plan.needs_moments:
        check_vectors(evidence.statistics, chosen.goal.low_rank, plan.force or plan.bundled)
    return chosen


def find_factors(
    plan: Plan,
    chosen: Chosen,
    stock: WhisperForConditionalGeneration,
    running: WhisperForConditionalGeneration,
    evidence: Evidence,
) -> Found:
    """Factorise every latent at its rank, with the option that held-out audio settles."""
    statistics, held_out, device = evidence.statistics, evidence.held_out, compute_device(stock)
    low_rank = chosen.goal.low_rank
    options: dict[str, Any] = dict(chosen.options)
    tried: list[Any] = []
    if not plan.mixes_bits:  # which bits were chosen with
        options, tried = search_option(plan.method, options, running, low_rank, statistics, held_out, device)
    decompositions = Decompositions(plan.method, options, stock.state_dict(), statistics, device)
    if plan.sequential and low_rank:
        items = factorise_sequentially(running, low_rank, decompositions)
    else:
        items = factorise(low_rank, decompositions)
    if plan.mixes_bits:
        size = chosen.goal.config.latent_group_size
        items = [
            replace(item, factors=for_mixed_bits(item.factors, size)) if item.latent.positions else item
            for item in items
        ]
    return Found(items, options, tried or (chosen.choice.tried if chosen.choice is not None else []))


def refit(plan: Plan, running: WhisperForConditionalGeneration, evidence: Evidence, found: Found) -> Found:
    """Fit all up projections together, where the plan allows it and it helps."""
    if not plan.may_refit or evidence.statistics is None:
        return found
    always = bool(plan.refit)
    items, refitting = refit_if_better(
        running, found.items, evidence.statistics, found.options, evidence.held_out, always
    )
    return replace(found, items=items, refitting=refitting)


def measure(plan: Plan, model: WhisperMLAForConditionalGeneration, evidence: Evidence, found: Found) -> Quality | None:
    """The finished model on held-out audio, or None where there is none or the conversion is exact.

    Raises:
        ConversionError: it changes too many of the stock model's words, and the plan does not force it.
    """
    if evidence.held_out is None or not (found.items or any(model.config.latent_dtypes)):
        return None
    same_encoder = not any(item.latent.in_encoder for item in found.items)
    running = running_copy(model)
    quality = evidence.held_out.measure(running, same_encoder)
    if plan.bundled:
        quality = replace(quality, measured_on=MEASURED_ON)
    if evidence.stock_tokens is not None:
        expected, decoded = (
            plan.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
            for tokens in (evidence.stock_tokens, evidence.held_out.decode(running, same_encoder))
        )
        quality = replace(quality, words=count_word_changes(expected, decoded, plan.language))
        if not any(expected):
            logger.warning(
                f"The stock model finds no words on {quality.measured_on}: what the conversion loses is unknown."
            )
        if not plan.force:
            refuse_changes(quality)
    max_kl = plan.budget.max_kl
    if max_kl is not None and quality.kl > 1.01 * max_kl:  # less is the noise of measuring twice
        logger.warning(
            f"max_kl={max_kl}: was met before the weights were rounded to {model.dtype}; "
            f"the model has {quality.kl:.3g}."
        )
    return quality


def report(
    plan: Plan,
    chosen: Chosen,
    stock: WhisperForConditionalGeneration,
    model: WhisperMLAForConditionalGeneration,
    evidence: Evidence,
    found: Found,
    quality: Quality | None,
    started: float,
) -> tuple[dict, dict]:
    """The report and the record of a conversion that began at `started`, in `time.monotonic()`'s seconds."""
    choice = chosen.choice
    facts = {
        "method": plan.method if found.items else "exact",
        "method_options": found.options if found.items else {},
        "option_search": found.tried,
        "sequential": plan.sequential and bool(found.items),
        "bundled": plan.bundled,
        "refit": found.refitting,
        "rank_choice": None if choice is None else {"allocation": choice.allocation, "reason": choice.reason},
        "seconds": round(time.monotonic() - started, 1),
        "peak_memory_bytes": peak_memory(compute_device(stock)),
    }
    told = conversion_report(stock, model, found.items, evidence.statistics, quality, choice, facts)
    record = conversion_record(
        plan.source, stock, model.config, evidence.statistics, found.items, facts, told["quality"], plan.loading
    )
    return told, record
