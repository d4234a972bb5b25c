"""The report of a conversion: what every latent kept, what it cost, and what became of the predictions."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import WhisperForConditionalGeneration

from whisper_mla.configuration.cache_size import cache_size
from whisper_mla.conversion.calibration.statistics import Statistics
from whisper_mla.conversion.methods.factorise import Factorised
from whisper_mla.conversion.ranks.quality import Quality
from whisper_mla.conversion.ranks.rank_choice import RankChoice
from whisper_mla.conversion.source.latent_weights import latent_weights

from .approximation_error import output_error, score_error

if TYPE_CHECKING:
    from whisper_mla.modeling_whisper_mla import WhisperMLAForConditionalGeneration

REPORT_NAME, PICTURE_NAME = "report.json", "report.png"


def conversion_report(
    stock: WhisperForConditionalGeneration,
    model: "WhisperMLAForConditionalGeneration",
    found: Sequence[Factorised],
    statistics: Statistics | None,
    quality: Quality | None,
    choice: RankChoice | None,
    facts: dict[str, Any],
) -> dict:
    """Gather what can be said of a conversion.

    Args:
        stock: the model converted.
        model: the result.
        found: its low-rank latents.
        statistics: of calibration; without, errors in scores and outputs are unknown (None).
        quality: on held-out audio, if measured.
        choice: of the ranks, if a budget chose them.
        facts: of the run: method, options, seconds, memory.

    Returns:
        dict: JSON-ready. "latents": name, rank, vectors of calibration, retained energy (in the method's own norm,
        before any refit), relative RMS error in scores and in outputs, and the spectrum.
    """
    latents = []
    weights = stock.state_dict()
    for item in found:
        row: dict[str, Any] = {
            "name": item.latent.name,
            "rank": item.latent.rank,
            "retained_energy": 1 - item.factors.relative_error**2,
            "score_error": None,
            "output_error": None,
            "vectors": None,
            "spectrum": [float(f"{value:.4g}") for value in item.factors.singular_values.tolist()],
        }
        if statistics is not None:
            around = latent_weights(item.latent, weights, item.factors.down.device)
            moments = statistics.moments(item.latent)
            row["score_error"] = score_error(around, moments, item.factors)
            row["output_error"] = output_error(around, moments, item.factors)
            row["vectors"] = moments.count
        latents.append(row)
    size, positions = model.dtype.itemsize, model.config.max_target_positions
    return {
        **facts,
        "rank_choice_kl": {} if choice is None else choice.kl,
        "calibration": None if statistics is None else statistics.source,
        "quality": None
        if quality is None
        else {
            "measured_on": quality.measured_on,
            "kl_per_token": quality.kl,
            "token_agreement": quality.token_agreement,
            "tokens": quality.tokens,
            "words": None if quality.words is None else asdict(quality.words),
        },
        "cache": {
            "stock_bytes": cache_size(stock.config, positions=positions, bytes_per_value=size).total,
            "model_bytes": cache_size(model.config, positions=positions, bytes_per_value=size).total,
            "positions": positions,
            "bytes_per_value": size,
        },
        "latents": latents,
    }


def write_report(report: dict, folder: str | os.PathLike) -> None:
    """Write `report.json`, and `report.png` if there is anything low-rank to draw.

    Args:
        report: of `conversion_report`.
        folder: which exists.

    Raises:
        OSError: it cannot be written.
    """
    Path(folder, REPORT_NAME).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if report["latents"]:
        draw_report(report, Path(folder, PICTURE_NAME))


def draw_report(report: dict, path: str | os.PathLike) -> None:
    """The spectrum of every latent with its rank, and errors by latent, as one PNG picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    latents = report["latents"]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    spectra, errors = figure.subplots(1, 2)
    for latent in latents:
        energies = [value**2 for value in latent["spectrum"]]
        total = sum(energies) or 1.0
        (line,) = spectra.semilogy([max(energy / total, 1e-12) for energy in energies], linewidth=1)
        at = min(latent["rank"], len(energies)) - 1
        spectra.plot(at, max(energies[at] / total, 1e-12), "o", color=line.get_color(), markersize=4)
    spectra.set(
        title=f"Spectrum ({report['method']}); the dot is the rank kept", xlabel="rank", ylabel="share of energy"
    )
    positions = range(len(latents))
    for key, label, marker in (
        ("score_error", "in scores", "o"),
        ("output_error", "in outputs", "s"),
    ):
        values = [latent[key] for latent in latents]
        if None not in values:
            errors.plot(positions, values, marker, label=label)
    errors.plot(
        positions,
        [(max(1 - row["retained_energy"], 0)) ** 0.5 for row in latents],
        "x",
        label="in the method's norm, before any refit",
    )
    errors.set(title="Relative RMS error by latent", yscale="log")
    names = [latent["name"].replace(".layers.", " ").replace(".", " ") for latent in latents]
    errors.set_xticks(list(positions), names, rotation=90, fontsize=6)
    errors.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def peak_memory(device: torch.device) -> dict[str, int]:
    """Bytes: the largest resident set of this process so far (not known on Windows), and what PyTorch allocated at most
    on a CUDA device."""
    peak = {}
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        peak["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if device.type == "cuda":
        peak["cuda"] = torch.cuda.max_memory_allocated(device)
    return peak
