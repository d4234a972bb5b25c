"""Memory of decoding, stock Whisper beside the lossless conversion: computed, and measured on the CPU.

    python benchmarks/memory.py --size small --protocol paper --name memory_paper
    python benchmarks/memory.py --size base --dtype float32 --measure --batch-size 1 --batch-size 8
    python benchmarks/memory.py --protocol paper --dtype bfloat16 --growth --seconds 200 --model stock --model exact

The same as `whisper-mla benchmark memory`, which any checkpoint can be given to, with the results kept.
"""

import dataclasses
from itertools import product

import typer
from result_files import write_results

from whisper_mla.command_line.benchmark_command import PROTOCOLS
from whisper_mla.configuration import whisper_config
from whisper_mla.evaluation.memory import Setting, memory_of, parse_bytes, stock_and_latent, streams_that_fit
from whisper_mla.evaluation.memory_process import measure, measure_growth


def main(
    size: str = typer.Option("small", help="Whisper's dimensions."),
    protocol: str = typer.Option("realistic", help="Or paper."),
    batch_size: list[int] = typer.Option([], help="Instead of the protocol's."),  # noqa: B008
    positions: list[int] = typer.Option([], help="Instead of the protocol's."),  # noqa: B008
    num_beams: list[int] = typer.Option([], help="Instead of the protocol's."),  # noqa: B008
    dtype: str = typer.Option("float16", help="float32 or bfloat16 where it is measured."),
    group_size: int = typer.Option(0, help="Values of a latent that are rounded together; 0: as a conversion does."),
    model: list[str] = typer.Option([], help="Rows of these only, as the table calls them; repeat."),  # noqa: B008
    limit: str = typer.Option("24GB", help="How many streams fit into it."),
    measured: bool = typer.Option(False, "--measure", help="Decode too."),
    growth: bool = typer.Option(False, help="Decode to the greatest length only, noting the peaks on the way."),
    seconds: float = typer.Option(600.0, help="That one decoding may take."),
    name: str = typer.Option("memory", help="Of the result files."),
):
    """One row for each setting and model."""
    config, value = whisper_config(size), 4 if dtype == "float32" else 2
    batches, lengths, beams = PROTOCOLS[protocol]
    batches, lengths, beams = batch_size or batches, positions or lengths, num_beams or beams
    rows, raw = [], []
    grown: dict = {}
    for streams, length, hypotheses in product(batches, lengths, beams):
        setting = Setting(streams, length, hypotheses, value)
        for name_of_model, one in stock_and_latent(config, max(lengths) if growth else length).items():
            if model and name_of_model not in model:
                continue
            if group_size and name_of_model.endswith("latents"):
                one.latent_group_size = group_size
            computed, fits = memory_of(one, setting), streams_that_fit(one, setting, parse_bytes(limit))
            result = {"model": name_of_model, **dataclasses.asdict(setting), "computed": dataclasses.asdict(computed)}
            cells = [f"{streams} × {length:,} × {hypotheses}", name_of_model]
            cells += [f"{part / 1e6:,.0f}" for part in (computed.weights, computed.cache, computed.work)] + [
                f"{fits:,}"
            ]
            if measured:
                found = measure(one, setting, seconds)
                result["measured"] = dataclasses.asdict(found)
                cells += [found.reason or f"{(found.peak - found.before) / 1e6:,.0f}"]
                cells += ["–" if found.reason else f"{part / 1e6:,.0f}" for part in (found.held, found.peak)]
            if growth:
                key = (streams, hypotheses, name_of_model)
                if key not in grown:
                    whole = dataclasses.replace(setting, positions=max(lengths))
                    grown[key] = measure_growth(one, whole, sorted(lengths), seconds)
                peaks, reason = grown[key]
                result["peak"], result["reason"] = peaks.get(length), None if length in peaks else reason
                cells += [f"{peaks[length] / 1e6:,.0f}" if length in peaks else str(reason)]
            rows.append(cells)
            raw.append({**result, "streams_that_fit": fits})
            print(cells, flush=True)
    columns = ["streams × positions × beams", "model", "weights", "cache", "work", f"fit into {limit}"]
    note = (
        f"MB of whisper-{size}'s dimensions in {dtype}. **Computed**: weights, the decode cache at its longest, an "
        f"estimate of passing work, and the streams of that length and width that fit into {limit} together."
    )
    if measured:
        columns += ["measured: decoding took", "measured: held in the end", "measured: peak"]
        note += (
            " **Measured**: resident memory of a fresh process on the CPU, random weights, the encoder output given: "
            "its peak, Python and libraries included; how much of it came while decoding; and what was freed when the "
            "cache at its longest and the audio's latents, or stock Whisper's encoder output, were let go."
        )
    if growth:
        columns += ["measured: peak so far"]
        note += (
            f" **Measured**: resident memory of a fresh process on the CPU, Python and libraries included: its peak "
            f"when one decoding has come so far, random weights, the encoder output given, {seconds:g} s at most."
        )
    write_results(name, note, columns, rows, raw)


if __name__ == "__main__":
    typer.run(main)
