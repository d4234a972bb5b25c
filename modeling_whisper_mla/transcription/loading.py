"""Load a checkpoint for transcription."""

import torch
from transformers import AutoModelForSpeechSeq2Seq, PreTrainedModel, ProcessorMixin

from whisper_mla.conversion.errors import ConversionError
from whisper_mla.conversion.source.loading import load_checkpoint, read_config_fields
from whisper_mla.conversion.source.processor import load_processor
from whisper_mla.int8_weights import METHOD, Int8WeightsConfig, check_int8_weights


def load_for_transcription(
    source: str,
    device: str | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    weights: str | None = None,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a stock or converted checkpoint with its processor.

    Args:
        source: a folder or a Hub id.
        device: "cpu", "cuda", "cuda:1", …; None: the first accelerator there is.
        dtype: "float32", "float16", "bfloat16"; None: float32 on the CPU, else that of the checkpoint.
        revision: branch, tag or commit on the Hub.
        weights: "int8": rounded to 8 bits on loading, for the CPU; None: as in the checkpoint.

    Returns:
        tuple: the model in evaluation mode on its device, and the processor.

    Raises:
        ConversionError: not a Whisper of either kind, weights missing or damaged, no processor, no such device, int8
            weights of a stock Whisper or beside another dtype.
        ValueError, RuntimeError: see [`whisper_mla.int8_weights.check_int8_weights`].
    """
    hub = {} if revision is None else {"revision": revision}
    model_type = read_config_fields(source, **hub).get("model_type")
    if model_type not in ("whisper", "whisper_mla"):
        raise ConversionError(f"{source}: model type {model_type!r} is neither Whisper nor Whisper-MLA.")
    quantised = read_config_fields(source, **hub).get("quantization_config")
    if weights is not None or (quantised or {}).get("quant_method") == METHOD:
        if dtype not in (None, "float32"):
            raise ConversionError(f"dtype={dtype!r} with int8 weights: these go with float32. Leave one of them out.")
        check_int8_weights([device])
        device = "cpu"
    if weights is not None and model_type == "whisper":
        raise ConversionError(
            f"{source}: int8 weights need a converted model. Convert it: "
            f"whisper-mla convert {source} OUT --weights int8"
        )
    try:
        where = torch.device(device or default_device())
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        raise ConversionError(f"device={device!r}: not available here ({str(error).splitlines()[0]}).") from error
    kind = dtype or ("float32" if where.type == "cpu" else "auto")
    rounding = {"quantization_config": Int8WeightsConfig()} if weights is not None and not quantised else {}
    model = load_checkpoint(AutoModelForSpeechSeq2Seq, source, dtype=kind, **rounding, **hub)
    processor = load_processor(source, **hub)
    if processor is None:
        raise ConversionError(f"{source}: no processor (feature extractor and tokenizer) in this checkpoint.")
    model.to(where)  # type: ignore[arg-type]
    return model.eval(), processor


def default_device() -> str:
    """The accelerator PyTorch sees, or the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if accelerator is None else accelerator.type
