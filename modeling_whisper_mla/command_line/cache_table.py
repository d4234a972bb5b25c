"""The decode cache of a model beside that of stock Whisper, part by part."""

from rich.table import Table
from transformers import WhisperConfig

from whisper_mla.configuration import WhisperMLAConfig, cache_size
from whisper_mla.configuration.configuration_whisper_mla import MIXED

PARTS = ("self_attention", "cross_attention", "total")


def cache_report(
    config: WhisperConfig, batch_size: int = 1, positions: int = 448, num_beams: int = 1, bytes_per_value: int = 2
) -> dict:
    """Bytes by part, of this model and of the stock Whisper of the same size. Computed, not measured.

    Args:
        config: of a stock or converted model.
        batch_size, positions, num_beams, bytes_per_value: see `cache_size`.

    Returns:
        dict: the settings, the ranks, the dtypes that latents are rounded to (text, audio), and for each part `stock`,
            `model` (bytes) and `change` (a ratio minus 1).
    """
    settings = {
        "batch_size": batch_size,
        "positions": positions,
        "num_beams": num_beams,
        "bytes_per_value": bytes_per_value,
    }
    is_latent = isinstance(config, WhisperMLAConfig)
    stock = cache_size(config.to_whisper_config() if is_latent else config, **settings)
    model = cache_size(config, **settings)
    report: dict = {"model_type": config.model_type, "d_model": config.d_model, **settings}
    if is_latent:
        report["ranks"] = {
            "kv": config.kv_ranks,
            "cross_kv": config.cross_kv_ranks,
            "cross_kv_shared": config.cross_kv_shared,
            "audio_kv": config.audio_kv_ranks,
            "cross_cache": config.cross_cache,
        }
        report["latent_dtype"] = config.latent_dtypes
    report["cache"] = {
        part: {
            "stock": getattr(stock, part),
            "model": getattr(model, part),
            "change": getattr(model, part) / getattr(stock, part) - 1,
        }
        for part in PARTS
    }
    return report


def cache_table(report: dict, title: str) -> Table:
    """The report of `cache_report` as a table."""
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column("decode cache")
    for column in ("stock Whisper", "this model", "change"):
        table.add_column(column, justify="right")
    for part, sizes in report["cache"].items():
        change = f"{sizes['change']:+.1%}" if sizes["change"] else "0 %"
        table.add_row(part.replace("_", "-"), megabytes(sizes["stock"]), megabytes(sizes["model"]), change)
    audios = f"{report['batch_size']} audio" + ("s" if report["batch_size"] > 1 else "")
    table.caption = (
        f"computed for {audios}, {report['num_beams']} beam(s), {report['positions']} text positions, "
        f"{report['bytes_per_value']} bytes per value"
    )
    return table


def describe_ranks(report: dict) -> str:
    """One line on what is latent, for people."""
    if "ranks" not in report:
        return "A stock Whisper: nothing is latent. Convert it with: whisper-mla convert"
    ranks, full = report["ranks"], report["d_model"]

    def say(values: list[int]) -> str:
        if set(values) == {full} and report["latent_dtype"][0] != MIXED:
            return "exact"
        return f"rank {values[0]}" if len(set(values)) == 1 else f"ranks {', '.join(map(str, values))}"

    cross = say(ranks["cross_kv"])
    if ranks["cross_cache"] == "key_value":
        cross = "stock keys and values"
    elif cross != "exact":
        cross += ", one latent for all layers" if ranks["cross_kv_shared"] else ", one latent per layer"
    audio = "stock" if set(ranks["audio_kv"]) == {full} else say(ranks["audio_kv"])
    text, kept = report["latent_dtype"]
    rounded = [f"{dtype} of the {what}" for dtype, what in ((text, "text"), (kept, "audio")) if dtype]
    if report["latent_dtype"][0] == MIXED:
        rounded = ["groups of directions in bits of their own"]
    return (
        f"Decoder self-attention: {say(ranks['kv'])}. Cross-attention: {cross}. Encoder: {audio}. (Full rank: {full}.)"
        + (f" Latents are rounded: {', '.join(rounded)}." if rounded else "")
    )


def megabytes(size: int) -> str:
    """Bytes as decimal megabytes."""
    return f"{size / 1e6:,.2f} MB"
