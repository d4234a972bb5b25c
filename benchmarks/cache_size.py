"""The decode cache of every Whisper size, stock and converted: computed from the dimensions, nothing is run."""

import typer
from result_files import write_results
from transformers import WhisperConfig

from whisper_mla.configuration import WHISPER_SIZES, WhisperMLAConfig, cache_size, whisper_config
from whisper_mla.conversion.mixed_choice import DEFAULT_BITS


def mixed(stock: WhisperConfig) -> dict:
    """Latents as large as `latent_dtype="mixed"` allows them, all alike: how they share bits depends on the audio."""
    bits, groups = int((DEFAULT_BITS * stock.d_model / 8 - 2) * 8 / 32), stock.d_model // 32
    row = [bits // groups + (group < bits % groups) for group in range(groups)]
    ranks = {"kv_rank": stock.d_model, "cross_kv_rank": stock.d_model}
    return {"latent_dtype": "mixed", "kv_bits": [row] * stock.decoder_layers, "cross_kv_bits": row, **ranks}


def main(
    positions: int = typer.Option(448, help="Text positions."),
    num_beams: int = typer.Option(1, help="Hypotheses per audio."),
    name: str = typer.Option("cache_size", help="Name of the result files."),
):
    """Compare stock, the paper's variant, exact, and rounded caches at float16.

    Example: python benchmarks/cache_size.py --num-beams 5 --name cache_size_5_beams
    """
    rows, raw = [], {}
    for size in WHISPER_SIZES:
        stock = whisper_config(size)
        half, quarter = stock.d_model // 2, stock.d_model // 4
        variants = {
            "paper (self-attention only, -87.5 %)": {"kv_rank": quarter, "cross_cache": "key_value"},
            "exact": {},
            "int8": {"latent_dtype": "int8"},
            "int8 of the text, int4 of the audio": {"latent_dtype": ["int8", "int4"]},
            "int4": {"latent_dtype": "int4"},
            "mixed bits, 3.5 per value": mixed(stock),
            "kv_rank d/2, int4": {"kv_rank": half, "latent_dtype": "int4"},
        }
        whole = cache_size(stock, positions=positions, num_beams=num_beams)
        raw[size] = {"stock": {"self": whole.self_attention, "cross": whole.cross_attention}}
        cells = [f"{whole.total / 1e6:,.1f}"]
        for variant, ranks in variants.items():
            config = WhisperMLAConfig.from_whisper_config(stock, **ranks)
            part = cache_size(config, positions=positions, num_beams=num_beams)
            raw[size][variant] = {"self": part.self_attention, "cross": part.cross_attention}
            cells.append(f"{part.total / 1e6:,.1f} ({part.total / whole.total - 1:+.1%})")
        rows.append([size, *cells])
    beams = f", {num_beams} beams" if num_beams > 1 else ""
    note = f"MB per stream, float16, {positions} text positions, 1500 frames{beams}. Computed, not measured."
    write_results(name, note, ["checkpoint", "stock", *variants], rows, raw)


if __name__ == "__main__":
    typer.run(main)
