"""What vLLM cannot hold of a Whisper-MLA model, said before any weights are loaded. vLLM is not needed."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..configuration.configuration_whisper_mla import WhisperMLAConfig
from ..int8_weights import METHOD

# Options that vLLM would start with, only to ignore them or to end its engine at the first request.
REFUSED_OPTIONS = {
    "--enable-lora": "adapters name projections that are folded into others here, and would change nothing. Merge the "
    "adapter into the model (PEFT's merge_and_unload) before it is converted, and serve that.",
    "--runner pooling": "Whisper-MLA transcribes. Leave the option out.",
    "--enable-prefix-caching": "vLLM has none for encoder-decoder models, and its engine would end at the first "
    "request. Leave the option out.",
    "--kv-transfer-config": "vLLM moves no caches of encoder-decoder models between servers. Leave the option out.",
}
# Fields that say how large weights are.
_WIDTHS = {"kv_rank", "cross_kv_rank", "cross_kv_shared", "audio_kv_rank"}


def check_served(
    config: WhisperMLAConfig,
    cache_dtype: str = "auto",
    tensor_parallel_size: int = 1,
    quantization: str | None = None,
    draft: str | None = None,
    options: Iterable[str] = (),
    overridden: Iterable[str] = (),
) -> None:
    """Raise unless vLLM can serve the model.

    Args:
        config: of the checkpoint.
        cache_dtype: vLLM's `--kv-cache-dtype`.
        tensor_parallel_size: vLLM's `--tensor-parallel-size`.
        quantization: vLLM's `--quantization`, or that of the checkpoint.
        draft: the method of vLLM's `--speculative-config`.
        options: those of `REFUSED_OPTIONS` that vLLM was given.
        overridden: fields that vLLM's `--hf-overrides` changes.

    Raises:
        ValueError: names the field, its value and the remedy.
    """
    if config.latent_dtype == "mixed":
        raise ValueError(
            "latent_dtype='mixed': vLLM's cache holds latents in the model's dtype. Serve another conversion."
        )
    if config.latent_dtypes != [None, None]:
        raise ValueError(
            f"latent_dtype={config.latent_dtype!r}: vLLM's cache holds latents in the model's dtype, not rounded ones. "
            "The weights are the same without the rounding: serve with --hf-overrides '{\"latent_dtype\": null}'."
        )
    if cache_dtype not in ("auto", "float32", "float16", "bfloat16"):
        raise ValueError(
            f"--kv-cache-dtype {cache_dtype}: latents are cached in the model's dtype. Leave the option out; to cache "
            "less, convert with a kv_rank and cross_kv_rank."
        )
    if quantization == METHOD:
        raise ValueError(INT8_WEIGHTS)
    if quantization:
        raise ValueError(
            f"--quantization {quantization}: weights are folded into one another when they are loaded, in floating "
            "point. Leave the option out; --dtype bfloat16 halves the weights and the cache."
        )
    if draft not in (None, "ngram"):
        raise ValueError(
            f"--speculative-config with the method {draft!r}: only n-grams have been tried with Whisper-MLA. Leave the "
            "option out, or take the method 'ngram'."
        )
    for field in _WIDTHS.intersection(overridden):
        raise ValueError(
            f"--hf-overrides {field}: the weights have the ranks that they were converted with. Leave the field "
            "out, or convert again."
        )
    for option in options:
        raise ValueError(f"{option}: {REFUSED_OPTIONS[option]}")
    heads = config.decoder_attention_heads
    if heads % tensor_parallel_size or config.encoder_attention_heads % tensor_parallel_size:
        raise ValueError(
            f"--tensor-parallel-size {tensor_parallel_size}: {heads} decoder and {config.encoder_attention_heads} "
            "encoder attention heads cannot be split evenly. Give a number that divides both."
        )


# Of each line, one is needed: how Transformers reads text and audio.
_READERS = {
    "tokenizer": ("tokenizer.json", "vocab.json"),
    "feature extractor": ("processor_config.json", "preprocessor_config.json"),
}


def check_folder(model: str, tokenizer: str) -> None:
    """Raise unless a folder has what vLLM reads beside the weights. A name on the Hub, no folder here, is left to vLLM.

    Args:
        model: vLLM's `--model`.
        tokenizer: vLLM's `--tokenizer`, or the model again.

    Raises:
        ValueError: names the folder, what is missing and the remedy.
    """
    for reader, files in _READERS.items():
        folder = Path(tokenizer if reader == "tokenizer" else model)
        if folder.is_dir() and not any((folder / file).is_file() for file in files):
            raise ValueError(
                f"{folder} has no {reader} ({' or '.join(files)}). Copy it from the model that was converted: "
                f"AutoProcessor.from_pretrained(SOURCE).save_pretrained({str(folder)!r})."
            )


def check_audio(samples: np.ndarray) -> None:
    """Raise unless there is something to hear.

    Args:
        samples: `[samples]`, of one request or a part of it.

    Raises:
        ValueError: no samples, or some that are no finite numbers. vLLM answers the request with the sentence.
    """
    if not samples.size:
        raise ValueError("file: the audio has 0 samples. Send a recording with sound in it.")
    if not np.isfinite(samples).all():
        raise ValueError("file: the audio has samples that are NaN or infinite. Send one in PCM, or repair it.")


INT8_WEIGHTS = (
    "quantization_config.quant_method='whisper_mla_int8': int8 weights run in Transformers on CPUs only, not in vLLM. "
    "Serve a checkpoint in floating point: convert again without --weights int8."
)
