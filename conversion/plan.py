"""What a conversion is to do, with everything refused that can be refused before weights are loaded."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from transformers import PreTrainedModel
from transformers.utils import logging

from whisper_mla.configuration.configuration_whisper_mla import MIXED, WhisperMLAConfig

from .calibration.calibrate import NO_PROCESSOR, read_calibration
from .calibration.statistics import Statistics
from .errors import ConversionError
from .methods import METHODS, needs_moments
from .methods.method_options import method_options
from .ranks.budget import Budget
from .source.latents import latents_of
from .source.loading import read_config
from .source.processor import processor_of

logger = logging.get_logger(__name__)

# Calibration audio: the speech that comes with the package.
BUNDLED = "bundled speech"
# Of `latent_dtype`: a budget chooses it together with the ranks. Until then a plan has the smallest.
CHOSEN = "auto"


@dataclass(frozen=True)
class Plan:
    """A conversion, as a user asked for it and as far as it is known without the weights.

    Attributes:
        source: a Hub id, a folder, or a model in memory.
        latent_fields: fields of `WhisperMLAConfig` (`LATENT_FIELDS`), as given.
        budget: what ranks are chosen under; not given: those of `latent_fields` hold.
        method: of `METHODS`.
        options: of the method.
        calibration: clips or statistics, read; None where the conversion uses none. `BUNDLED` where the bundled speech
            is to stand in, until the model is there to tell whether it can.
        processor: of the source, where clips have to be made into examples.
        language, task: of the clips; None: the model's default, or detected.
        refit: True, False, or None: where it helps.
        sequential: find every latent on what the converted layers below deliver.
        force: go on with too few vectors of calibration, and with too large a loss.
        loading: keyword arguments of `from_pretrained` of the source.
        bundled: whether calibration is the bundled speech.
        chooses_rounding: whether the budget chooses `latent_dtype` too.
        mixes_bits: whether latents get bits by direction; ranks follow, so that until then nothing is latent.
    """

    source: str | os.PathLike | PreTrainedModel
    latent_fields: Mapping[str, Any]
    budget: Budget
    method: str
    options: dict[str, Any]
    calibration: Any
    processor: Any
    language: str | None
    task: str | None
    refit: bool | None
    sequential: bool
    force: bool
    loading: dict[str, Any]
    bundled: bool = False
    chooses_rounding: bool = False
    mixes_bits: bool = False

    @classmethod
    def from_arguments(
        cls,
        source: str | os.PathLike | PreTrainedModel,
        latent_fields: Mapping[str, Any],
        budget: Budget,
        others: Mapping[str, Any],
        *,
        method: str | None = None,
        calibration: Any = None,
        **arguments,
    ) -> "Plan":
        """The plan that the arguments of `from_whisper` describe. Reads config.json of the source, and calibration.

        Args:
            source: what to convert.
            latent_fields: fields of `WhisperMLAConfig`.
            budget: of cache bytes or of quality; may be empty.
            others: options of the method, and arguments of `from_pretrained`.
            method: of `METHODS`; None: "fisher", or "joint_svd" with its options.
            calibration: audio or statistics, see `read_calibration`; None: the bundled speech, unless a method is
                named.
            arguments: the remaining fields of a plan.

        Raises:
            ConversionError: the source is no stock Whisper, calibration cannot be read, or a budget cannot be met.
            ValueError: an unknown method, option or argument, a rank out of range or of wrong length, or arguments
                that do not go together.
        """
        may_stand_in = method is None and not {"preserved_key_dims", "preserved_key_selection"} & others.keys()
        method = method or ("fisher" if may_stand_in else "joint_svd")
        if calibration is None and may_stand_in and not arguments["sequential"] and not arguments["refit"]:
            calibration = BUNDLED if budget.max_kl is None else None
        if method not in METHODS:
            raise ValueError(f"method={method!r}: expected one of {', '.join(map(repr, METHODS))}.")
        loading = dict(others)
        options = method_options(method, loading)
        fields = {"method": method, "options": options, "calibration": calibration, "loading": loading}
        if budget.is_given:  # its ranks are multiples of the size: larger groups would bind them more
            latent_fields = {"latent_group_size": 32, **latent_fields}
        if latent_fields.get("latent_dtype") == CHOSEN:
            latent_fields, fields["chooses_rounding"] = {**latent_fields, "latent_dtype": "int4"}, True
        elif latent_fields.get("latent_dtype") == MIXED:
            latent_fields, fields["mixes_bits"] = {**latent_fields, "latent_dtype": None}, True
        plan = cls(source, latent_fields, budget, **fields, **arguments)
        budget.check()
        for refusal in _REFUSALS:
            if refusal.when(plan):
                raise refusal.error(refusal.message.format(plan=plan))
        return plan._fitted(WhisperMLAConfig.from_whisper_config(read_config(source, **loading), **latent_fields))

    def _fitted(self, config: WhisperMLAConfig) -> "Plan":
        """The plan for a model of this configuration, with calibration read."""
        low_rank = [latent for latent in latents_of(config) if latent.rank < config.d_model]
        rounds = any(config.latent_dtypes)
        if self.budget.is_given:
            self.budget.ranks(config.d_model)
        elif self.refit and all(latent.in_encoder for latent in low_rank):
            raise ValueError("refit=True: nothing in the decoder to refit. Give kv_rank, cross_kv_rank or a budget.")
        if not (low_rank or self.budget.is_given or rounds or self.mixes_bits):
            return replace(self, calibration=None)
        if self.calibration is None:
            logger.warning(
                f"method={self.method!r} without audio: neither calibrated nor measured. A rank found in the weights "
                "alone can cost a real model its words; leave out the method, or give calibration=…."
            )
            return self
        processor = self.processor or processor_of(self.source, self.loading)
        if self.calibration is BUNDLED:
            if processor is None and self.mixes_bits:
                raise ConversionError(NO_PROCESSOR)
            if processor is None:
                logger.warning("Neither calibrated nor measured: the source has no processor (processor=).")
                return self.without_audio()
            return replace(self, processor=processor, bundled=True)
        calibration = read_calibration(self.calibration)
        if not isinstance(calibration, Statistics):
            if processor is None:
                raise ConversionError(NO_PROCESSOR)
        elif (self.sequential or self.refit) and not calibration.examples:
            name = "sequential=True" if self.sequential else "refit=True"
            raise ConversionError(f"{name}: needs calibration audio (calibration=), not a statistics file.")
        return replace(self, calibration=calibration, processor=processor)

    def without_audio(self) -> "Plan":
        """The plan where no audio can be used: `joint_svd`, from the weights alone.

        Raises:
            ValueError: there are options of a method that needs audio.
            ConversionError: latents get bits by direction, which only audio can tell.
        """
        if self.mixes_bits:
            raise ConversionError("latent_dtype='mixed': needs audio of the kind that the model hears (calibration=).")
        if self.options:
            name = next(iter(self.options))
            raise ValueError(
                f"{name}: belongs to method={self.method!r}, which needs calibration audio: calibration=…."
            )
        return replace(self, method="joint_svd", calibration=None, bundled=False)

    @property
    def needs_moments(self) -> bool:
        """Whether factors depend on calibration, not only what is measured of them."""
        by_option = self.options.get("preserved_key_selection") == "2-norm"
        return needs_moments(self.method) or by_option or self.sequential

    @property
    def may_refit(self) -> bool:
        """Whether up projections may be refitted together."""
        never = self.sequential or self.mixes_bits or self.bundled or self.refit is False
        return self.method == "fisher" and not never

    @property
    def has_a_rank(self) -> bool:
        """Whether any rank was given."""
        return any(self.latent_fields.get(name) is not None for name in ("kv_rank", "cross_kv_rank", "audio_kv_rank"))

    @property
    def approach(self) -> str:
        """For messages: the argument that says how latents are found."""
        return "sequential=True" if self.sequential else f"method={self.method!r}"

    @property
    def demands_audio(self) -> str:
        """For messages: the argument that cannot do without calibration; empty where there is none."""
        if self.budget.max_kl is not None:
            return "max_kl"
        return self.approach if self.needs_moments else ""


_SETTLED_BY_MIXING = ("kv_rank", "cross_kv_rank", "cross_kv_shared", "cross_cache")


class _Refusal(NamedTuple):
    """Arguments that do not go together."""

    when: Callable[[Plan], object]
    error: type[Exception]
    message: str


# Tried in this order, before anything is read.
_REFUSALS = (
    _Refusal(
        lambda plan: plan.mixes_bits and (plan.method != "fisher" or plan.sequential or plan.refit),
        ValueError,
        "latent_dtype='mixed': needs method='fisher' without sequential and refit.",
    ),
    _Refusal(
        lambda plan: (
            plan.mixes_bits
            and [plan.latent_fields[name] for name in _SETTLED_BY_MIXING] != [None, None, True, "latent"]
        ),
        ValueError,
        f"latent_dtype='mixed': settles {', '.join(_SETTLED_BY_MIXING)}: leave them out.",
    ),
    _Refusal(
        lambda plan: plan.mixes_bits and plan.budget.max_kl is not None,
        ValueError,
        "latent_dtype='mixed': takes cache_cut or cache_bytes, not max_kl.",
    ),
    _Refusal(
        lambda plan: plan.refit and (plan.method != "fisher" or plan.sequential),
        ValueError,
        "refit=True: needs method='fisher', with calibration audio, not {plan.approach}.",
    ),
    _Refusal(
        lambda plan: plan.refit and plan.budget.max_kl is not None,
        ValueError,
        "refit=True: could break max_kl. Leave it out: a refit that lowers the KL is taken anyway.",
    ),
    _Refusal(
        lambda plan: (
            plan.budget.is_given
            and (not plan.latent_fields["cross_kv_shared"] or plan.latent_fields["cross_cache"] != "latent")
        ),
        ConversionError,
        "A budget needs the shared cross-attention latent: leave out cross_kv_shared, cross_cache.",
    ),
    _Refusal(
        lambda plan: (
            plan.budget.is_given and None not in (plan.latent_fields["kv_rank"], plan.latent_fields["cross_kv_rank"])
        ),
        ConversionError,
        "A budget chooses kv_rank, cross_kv_rank, or both: give one of them at most.",
    ),
    _Refusal(
        lambda plan: plan.chooses_rounding and not plan.budget.is_given,
        ValueError,
        "latent_dtype='auto' is chosen under a budget: give cache_cut, cache_bytes or max_kl, or a dtype.",
    ),
    _Refusal(
        lambda plan: plan.budget.is_given and plan.options.get("preserved_key_dims"),
        ConversionError,
        "preserved_key_dims needs given ranks (kv_rank): leave out the budget.",
    ),
    _Refusal(
        lambda plan: plan.options.get("preserved_key_selection") and not plan.options.get("preserved_key_dims"),
        ValueError,
        "preserved_key_selection={plan.options[preserved_key_selection]!r} needs preserved_key_dims.",
    ),
    _Refusal(
        lambda plan: (
            plan.calibration is not None
            and plan.calibration is not BUNDLED
            and not plan.has_a_rank
            and not plan.budget.is_given
            and plan.latent_fields.get("latent_dtype") is None
            and not plan.mixes_bits
        ),
        ValueError,
        "calibration: has nothing to calibrate, the conversion is exact. Give kv_rank, cross_kv_rank, audio_kv_rank, "
        "latent_dtype or a budget, or leave it out.",
    ),
    _Refusal(
        lambda plan: plan.refit and plan.calibration is None,
        ValueError,
        "refit=True: needs calibration audio: calibration=….",
    ),
    _Refusal(
        lambda plan: plan.demands_audio and plan.calibration is None,
        ValueError,
        "{plan.demands_audio} needs calibration audio or a statistics file: calibration=….",
    ),
)

__all__ = ["Plan"]
