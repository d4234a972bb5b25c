"""Load a checkpoint for transcription."""

import torch
from transformers import AutoModelForSpeechSeq2Seq, PreTrainedModel, ProcessorMixin

from whisper_mla.conversion.errors import ConversionError
from whisper_mla.conversion.source.loading import load_checkpoint, read_config_fields
from whisper_mla.conversion.source.processor import load_processor


def load_for_transcription(
    source: str, device: str | None = None, dtype: str | None = None, revision: str | None = None
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a stock or converted checkpoint with its processor.

    Args:
        source: a folder or a Hub id.
        device: "cpu", "cuda", "cuda:1", …; None: the first accelerator there is.
        dtype: "float32", "float16", "bfloat16"; None: float32 on the CPU, else that of the checkpoint.
        revision: branch, tag or commit on the Hub.

    Returns:
        tuple: the model in evaluation mode on its device, and the processor.

    Raises:
        ConversionError: not a Whisper of either kind, weights missing or damaged, no processor, no such device.
    """
    hub = {} if revision is None else {"revision": revision}
    model_type = read_config_fields(source, **hub).get("model_type")
    if model_type not in ("whisper", "whisper_mla"):
        raise ConversionError(f"{source}: model type {model_type!r} is neither Whisper nor Whisper-MLA.")
    try:
        where = torch.device(device or default_device())
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        raise ConversionError(f"device={device!r}: not available here ({str(error).splitlines()[0]}).") from error
    kind = dtype or ("float32" if where.type == "cpu" else "auto")
    model = load_checkpoint(AutoModelForSpeechSeq2Seq, source, dtype=kind, **hub)
    processor = load_processor(source, **hub)
    if processor is None:
        raise ConversionError(f"{source}: no processor (feature extractor and tokenizer) in this checkpoint.")
    model.to(where)  # type: ignore[arg-type]
    return model.eval(), processor


def default_device() -> str:
    """The accelerator PyTorch sees, or the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if accelerator is None else accelerator.type
