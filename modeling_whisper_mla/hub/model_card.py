"""The model card of a converted checkpoint: what it is, what it saves, what is known of its quality, how to load it."""

import json
import os
import re
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from ..configuration import WhisperMLAConfig, cache_size
from ..version import __version__
from .conversion_record import RECORD_NAME

TEMPLATE = Path(__file__).parents[1] / "assets" / "model_card.md"


def write_model_card(folder: str | os.PathLike) -> None:
    """Write README.md from the configuration and the conversion record in `folder`; replaces one that is there.

    What is not in these files is not in the card: no licence where the source's is unknown, no quality that was not
    measured.

    Args:
        folder: with config.json and conversion.json.
    """
    folder = Path(folder)
    config = WhisperMLAConfig.from_json_file(folder / "config.json")
    record = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
    source = record.get("source", {})
    is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", source.get("name", "")) is not None
    data = ModelCardData(
        base_model=source["name"] if is_hub_id else None,
        library_name="transformers",
        pipeline_tag="automatic-speech-recognition",
        license=source.get("license"),
        license_name=source.get("license_name"),
        license_link=source.get("license_link"),
        language=source.get("language"),
        tags=["whisper", "whisper_mla", "multi-head-latent-attention", "custom_code"],
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        record=record,
        source=source,
        source_link=f"https://huggingface.co/{source['name']}" if is_hub_id else None,
        method=describe_conversion(record),
        is_rounded=bool(describe_rounding(record)),
        ranks=_describe_ranks(config),
        cache=_cache_rows(config),
        quality=record.get("quality"),
        healing=record.get("healing"),
        version=__version__,
    )
    card.save(folder / "README.md")


def describe_conversion(record: dict) -> str:
    """One phrase on how a checkpoint was made, such as "`fisher` (floor=0.1)"."""
    rounded = describe_rounding(record)
    if record.get("method", "exact") == "exact":
        return ", ".join(["exact: nothing was factorised", *rounded])
    options = ", ".join(f"{name}={value}" for name, value in record.get("method_options", {}).items())
    how = f"`{record['method']}`" + (f" ({options})" if options else "")
    layer_by_layer = ["layer by layer"] if record.get("sequential") else []
    refit = ["up projections refitted together"] if (record.get("refit") or {}).get("kept") else []
    return ", ".join([how, *layer_by_layer, *refit, *rounded])


def describe_rounding(record: dict) -> list[str]:
    """Phrases such as "latents of the text rounded to int8", from the fields of a conversion record."""
    dtype = record.get("ranks", {}).get("latent_dtype")
    text, audio = dtype if isinstance(dtype, list) else (dtype, dtype)
    if text == audio:
        return [f"latents rounded to {text}"] if text else []
    return [f"latents of the {what} rounded to {dtype}" for what, dtype in (("text", text), ("audio", audio)) if dtype]


def _describe_ranks(config: WhisperMLAConfig) -> list[tuple[str, str]]:
    def say(ranks: list[int]) -> str:
        if set(ranks) == {config.d_model} and config.latent_dtype != "mixed":
            return f"exact ({config.d_model})"
        return str(ranks[0]) if len(set(ranks)) == 1 else ", ".join(map(str, ranks))

    cross = say(config.cross_kv_ranks) + (", one latent for all layers" if config.cross_kv_shared else ", per layer")
    if config.cross_cache == "key_value":
        cross = "full keys and values, as stock Whisper"
    return [
        ("decoder self-attention (`kv_rank`)", say(config.kv_ranks)),
        ("cross-attention (`cross_kv_rank`)", cross),
        ("encoder self-attention (`audio_kv_rank`)", say(config.audio_kv_ranks)),
    ]


def _cache_rows(config: WhisperMLAConfig) -> list[tuple[str, str, str, str]]:
    """Part, stock, this model, change; one stream at full length, 2 bytes per value."""
    stock, ours = (cache_size(c, positions=c.max_target_positions) for c in (config.to_whisper_config(), config))
    rows = []
    for part in ("self_attention", "cross_attention", "total"):
        before, after = getattr(stock, part), getattr(ours, part)
        change = f"{after / before - 1:+.1%}"
        rows.append((part.replace("_", "-"), f"{before / 1e6:.2f} MB", f"{after / 1e6:.2f} MB", change))
    return rows
