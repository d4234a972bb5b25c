"""Calibrate: from audio, or from a statistics file, to statistics of one stock model."""

import copy
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel, ProcessorMixin, WhisperForConditionalGeneration
from transformers.utils import logging

from whisper_mla.conversion.errors import ConversionError
from whisper_mla.conversion.source.latents import Latent

from .clips import Clip, read_clips
from .examples import BATCH_SIZE, Example, by_length
from .gather_statistics import batch_size_for, gather_statistics
from .interrupted_gathering import InterruptedGathering
from .make_examples import make_examples, windows_of
from .statistics import Statistics
from .statistics_file import load_statistics
from .time_estimate import TimeEstimate

logger = logging.get_logger(__name__)

_Model = TypeVar("_Model", bound=PreTrainedModel)
NO_PROCESSOR = "calibration: a processor is needed (processor=), the source has none."
# Vectors of calibration per unit of rank: fewer than the first is refused, fewer than the second is worth a warning.
VECTORS_NEEDED, VECTORS_WANTED = 8, 128
# Share of the clips that is kept apart to measure conversions on.
HELD_OUT = 0.25


def calibrate(
    stock: WhisperForConditionalGeneration,
    calibration: Any,
    processor: ProcessorMixin | None = None,
    *,
    language: str | None = None,
    task: str | None = None,
    held_out: float = HELD_OUT,
    gradients: bool = True,
    encoder: bool = False,
    seed: int = 0,
    interrupted: str | os.PathLike | None = None,
) -> Statistics:
    """Statistics of a stock model on calibration audio.

    Args:
        stock: in evaluation mode. In half precision a float32 copy is run.
        calibration: audio (see `read_clips`), a statistics file, or `Statistics`, which are checked and returned.
        processor: of the model; not needed for statistics that exist.
        language, task: of the audio; None: the model's default, or detected. Clips with a transcript need a language
            where the model has no default; None is English.
        held_out: share of the clips that is kept apart to measure conversions on, evenly spread; at least one clip,
            unless there is only one.
        gradients: gather the Fisher information, for `method="fisher"`.
        encoder: gather statistics of encoder self-attention too, for `audio_kv_rank`; takes several times as long.
        seed: of the random projections behind the Fisher information.
        interrupted: a file where transcripts and sums are kept every half minute; if it exists, is of the same model,
            audio and options, the run goes on from there, to the same statistics. It is removed at the end.

    Where progress bars are shown, a line says how long it takes, as soon as that has been measured.

    Returns:
        Statistics: with `examples`, the clips that they are of, and `held_out`.

    Raises:
        ConversionError: no audio that can be read, no processor, statistics of another model, or a file that cannot be
            written.
    """
    if not 0 <= held_out < 1:
        raise ConversionError(f"held_out={held_out}: expected a share from 0 to below 1.")
    clips = read_calibration(calibration)
    fingerprint = weights_fingerprint(stock)
    if isinstance(clips, Statistics):
        if clips.source.get("model_sha256") != fingerprint:
            raise ConversionError(
                f"{clips.name}: these statistics are of another model ({clips.source.get('model', 'unknown')}, or in "
                "another dtype). Calibrate this one: whisper-mla calibrate"
            )
        return clips
    if processor is None:
        raise ConversionError(NO_PROCESSOR)
    model = running_copy(stock)
    options: dict[str, Any] = {"gradients": gradients, "encoder": encoder, "seed": seed}
    kept_at = None
    if interrupted is not None:
        kept_at = InterruptedGathering(interrupted, _identity(clips, fingerprint, language, task, held_out, options))
    windows = windows_of(clips, processor.feature_extractor.n_samples)
    kept = _spread(len(windows), held_out)
    tell = _time_estimate(model, windows, len(windows) - len(kept), options, kept_at)

    def after_batch(made: list[Example], is_typical: bool, left: int) -> None:
        tell.after_batch(made, is_typical, left)
        if kept_at is not None and not kept_at.done:
            kept_at.offer()

    examples = make_examples(
        model,
        processor,
        clips,
        language=language,
        task=task,
        encode=not encoder,
        transcripts=None if kept_at is None else kept_at.transcripts,
        after_batch=after_batch,
    )
    used = [example for i, example in enumerate(examples) if i not in kept]
    statistics = gather_statistics(model, used, **options, interrupted=kept_at)
    if kept_at is not None:
        kept_at.remove()
    statistics.examples = used
    statistics.held_out = by_length([examples[i] for i in sorted(kept)], BATCH_SIZE)
    statistics.source = _facts(stock, fingerprint, clips, statistics)
    return statistics


def _identity(clips: list[Clip], *parts: Any) -> str:
    """SHA-256 of what statistics depend on."""
    digest = hashlib.sha256(repr(("2 draws, batches by length", *parts)).encode())
    for clip in clips:
        digest.update(repr(clip.text).encode())
        digest.update(clip.samples.tobytes())
    return digest.hexdigest()


def _time_estimate(
    model: PreTrainedModel,
    windows: Sequence[tuple[Any, str | None]],
    used: int,
    options: dict[str, Any],
    kept_at: InterruptedGathering | None,
) -> TimeEstimate:
    """Of a calibration on windows, so many of which are used; a line tells what an earlier run has left of it."""
    passes = 2 if options["gradients"] else 1
    batches = passes * -(-used // batch_size_for(model, options["gradients"] and options["encoder"]))
    done = 0 if kept_at is None else sum(kept_at.done)
    transcribing = any(text is None for _, text in windows)
    return TimeEstimate(
        len(windows),
        passes + transcribing,
        lambda example: gather_statistics(model, [example], **options, shown=False),
        used * (1 - done / batches),
        goes_on=kept_at is not None and bool(kept_at.transcripts or done),
    )


def hold_out(
    stock: WhisperForConditionalGeneration,
    calibration: Any,
    processor: ProcessorMixin | None = None,
    *,
    language: str | None = None,
    task: str | None = None,
) -> Statistics:
    """All clips as examples to measure a conversion on that needs no statistics.

    Args:
        stock, calibration, processor, language, task: as of `calibrate`.

    Returns:
        Statistics: with `held_out` alone; those that exist are checked and returned.

    Raises:
        ConversionError: as of `calibrate`.
    """
    clips = read_calibration(calibration)
    if isinstance(clips, Statistics):
        return calibrate(stock, clips)
    if processor is None:
        raise ConversionError(NO_PROCESSOR)
    examples = make_examples(running_copy(stock), processor, clips, language=language, task=task)
    statistics = Statistics(inputs={}, queries={}, held_out=by_length(examples, BATCH_SIZE))
    statistics.source = _facts(stock, weights_fingerprint(stock), clips, statistics)
    return statistics


def _facts(stock: PreTrainedModel, fingerprint: str, clips: list[Clip], statistics: Statistics) -> dict:
    used = statistics.examples
    return {
        "model": model_name(stock),
        "model_sha256": fingerprint,
        "clips": len(clips),
        "seconds": round(sum(len(clip.samples) for clip in clips) / 16_000, 1),
        "with_transcript": sum(clip.text is not None for clip in clips),
        "held_out_windows": len(statistics.held_out),
        "text_vectors": sum(len(example.decoder_input_ids) for example in used),
        "audio_vectors": len(used) * stock.config.max_source_positions,
    }


def read_calibration(calibration: Any) -> Statistics | list[Clip]:
    """What `calibration` stands for, before any model is at hand: a statistics file read, or audio read.

    Args:
        calibration: see `calibrate`. Clips that are read already, and statistics, are returned.

    Raises:
        ConversionError: neither statistics nor audio that can be read.
    """
    if isinstance(calibration, Statistics):
        return calibration
    if isinstance(calibration, (str, os.PathLike)) and Path(calibration).suffix == ".safetensors":
        return load_statistics(calibration)
    if isinstance(calibration, list) and calibration and all(isinstance(item, Clip) for item in calibration):
        return calibration
    return read_clips(calibration)


def check_vectors(statistics: Statistics, latents: list[Latent], force: bool) -> None:
    """Warn where calibration is thin for a rank.

    Args:
        statistics: of calibration.
        latents: those that are found with them.
        force: go on where there is far too little.

    Raises:
        ConversionError: fewer than `VECTORS_NEEDED` vectors per unit of rank, without `force`.
    """
    thin = []
    for latent in latents:
        count = statistics.moments(latent).count
        if count < VECTORS_NEEDED * latent.rank and not force:
            needed, wanted = VECTORS_NEEDED * latent.rank, VECTORS_WANTED * latent.rank
            raise ConversionError(
                f"calibration: {count:,} vectors for {latent.name}, too few for rank {latent.rank}, which needs at "
                f"least {needed:,} ({wanted:,} are recommended). Give more audio, or go on with force=True (--force)."
            )
        if count < VECTORS_WANTED * latent.rank:
            thin.append((count / latent.rank, count, latent))
    if thin:
        _, count, latent = min(thin, key=lambda item: item[0])
        logger.warning(
            f"Calibration is thin: {count:,} vectors for {latent.name} at rank {latent.rank}, "
            f"{VECTORS_WANTED * latent.rank:,} are recommended. More audio gives a better conversion."
        )


def model_name(model: PreTrainedModel) -> str:
    """The Hub id that a model came from, or the name of its folder: where that lies means nothing to others."""
    name = str(model.config._name_or_path or type(model).__name__)
    return Path(name).resolve().name if Path(name).is_dir() else name


def running_copy(stock: _Model) -> _Model:
    """The model itself, or a copy that can be measured: in float32, because statistics of rounded activations would be
    noise, in evaluation mode, and not on MPS, which has no float64."""
    is_on_mps = stock.device.type == "mps"
    if stock.dtype == torch.float32 and not stock.training and not is_on_mps:
        return stock
    running = copy.deepcopy(stock).float().eval()
    return running.cpu() if is_on_mps else running


def weights_fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 over names, shapes and values (as float32) of all weights: a float16 checkpoint and its float32
    copy have the same."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _spread(count: int, share: float) -> set[int]:
    """Indices of about `share · count` items, evenly spread; of two or more at least one, and never all."""
    number = min(max(round(count * share), 1), count - 1) if share and count > 1 else 0
    return {int((i + 0.5) * count / number) for i in range(number)}


__all__ = [
    "calibrate",
    "check_vectors",
    "hold_out",
    "model_name",
    "read_calibration",
    "running_copy",
    "weights_fingerprint",
]
