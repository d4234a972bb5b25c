"""What `conversion.json` says of a conversion."""

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import metadata_load
from transformers import PreTrainedModel, WhisperForConditionalGeneration

from whisper_mla.configuration.configuration_whisper_mla import LATENT_FIELDS, WhisperMLAConfig
from whisper_mla.conversion.calibration.calibrate import model_name, weights_fingerprint
from whisper_mla.conversion.calibration.statistics import Statistics
from whisper_mla.conversion.methods.factorise import Factorised
from whisper_mla.conversion.source.loading import local_folder
from whisper_mla.hub.conversion_record import sha256_of_weights
from whisper_mla.version import __version__


def conversion_record(
    source: str | os.PathLike | PreTrainedModel,
    stock: WhisperForConditionalGeneration,
    config: WhisperMLAConfig,
    statistics: Statistics | None,
    found: Sequence[Factorised],
    facts: dict[str, Any],
    quality: dict | None,
    arguments: dict[str, Any],
) -> dict:
    """Where a conversion comes from and what it did; the checksums of its own weights are added when it is saved.

    Args:
        source: what was given to `from_whisper`.
        stock: the model loaded from it.
        config: of the result.
        statistics: of calibration, if any.
        found: the low-rank latents.
        facts: of the run: method, options, seconds.
        quality: as measured, or None.
        arguments: for `from_pretrained` of the source.

    Returns:
        dict: JSON-ready, without paths of this machine; see `whisper_mla.hub.conversion_record`.
    """
    calibration = None
    if statistics is not None:
        calibration = {**statistics.source, "used": bool(found), "bundled": facts["bundled"]}
    return {
        "format": 1,
        "source": _describe_source(source, stock, arguments),
        "versions": {
            "whisper-mla": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        **{name: facts[name] for name in ("method", "method_options", "sequential", "refit", "rank_choice")},
        "ranks": {field: getattr(config, field) for field in LATENT_FIELDS},
        "calibration": calibration,
        "latents": [
            {"name": item.latent.name, "rank": item.latent.rank, "relative_error": item.factors.relative_error}
            for item in found
        ],
        "quality": quality,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": facts["seconds"],
    }


def _describe_source(source, stock, arguments) -> dict:
    """Name, revision and checksums of what was converted: of weight files, or of the weights of a model in memory."""
    if isinstance(source, PreTrainedModel):
        return {"name": model_name(stock), "revision": None, "sha256": {"weights": weights_fingerprint(stock)}}
    folder = Path(local_folder(source, **arguments), arguments.get("subfolder") or "")
    revision = getattr(stock.config, "_commit_hash", None)
    sha256 = sha256_of_weights(folder) if folder.is_dir() else {"weights": weights_fingerprint(stock)}
    return {"name": model_name(stock), "revision": revision, "sha256": sha256, **_card_facts(folder)}


def _card_facts(folder: Path) -> dict:
    """Licence and language as the source's model card states them; nothing where there is no card."""
    try:
        facts = metadata_load(folder / "README.md") or {}
    except Exception:  # a card is optional, and people write strange ones
        return {}
    names = ("license", "license_name", "license_link", "language")
    return {name: facts[name] for name in names if facts.get(name)}
