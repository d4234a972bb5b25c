"""Two models in vLLM side by side, in many short turns: requests per second of a closed loop, pair by pair.

What a server does in one run says little where the processor is shared. Here both servers are up and one at a time
is asked: each pair sends the same recordings to the one and then to the other, and every other pair
begins with the second model. The ratios within the pairs are what is compared; beside them the processor time of the
process that runs the model, which other work on the machine disturbs less. Needs whisper-mla[vllm].

    python benchmarks/serving_pairs.py speech/ stock=whisper-base exact=whisper-base-mla
"""

import asyncio
import itertools
import statistics
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import psutil
import typer
import vllm
from result_files import write_results
from serving import WARM, closed_loop, served

from whisper_mla.vllm_plugin.encoded_audio import KEPT


def main(
    speech: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Recordings up to 30 s.")],
    stock: Annotated[str, typer.Argument(help="NAME=FOLDER")],
    ours: Annotated[str, typer.Argument(help="NAME=FOLDER, whose ratio to the first is taken.")],
    clients: int = 8,
    requests: Annotated[int, typer.Option(help="Of each turn.")] = 16,
    pairs: int = 8,
    cache_bytes: int = 256 << 20,
    dtype: str = "float32",
    name: str = "serving_pairs",
):
    labels, folders = zip(*(model.split("=", 1) for model in (stock, ours)), strict=True)
    recordings = sorted(path for path in speech.iterdir() if path.suffix in (".flac", ".wav"))
    # Our server must not meet audio again while it has the encoder's outputs of it.
    needed = WARM + requests + KEPT + clients
    if len(recordings) < needed:
        raise typer.BadParameter(f"{speech} has {len(recordings)} recordings, {needed} are needed.")
    endless = itertools.cycle(recordings)
    raw, rows = [], []
    with ExitStack() as servers:
        both = [servers.enter_context(served(folder, cache_bytes, dtype)) for folder in folders]
        warm = list(itertools.islice(endless, WARM))
        for server in both:
            asyncio.run(closed_loop(server.url, warm, 1, {}))
        for pair in range(pairs):
            sent = list(itertools.islice(endless, requests))
            found: list[dict] = [{}, {}]
            for model in (0, 1) if pair % 2 == 0 else (1, 0):
                before = processor_seconds(both[model].process)
                found[model] = asyncio.run(closed_loop(both[model].url, sent, clients, {}))
                found[model]["processor"] = (processor_seconds(both[model].process) - before) / requests
            speeds = [requests / turn["total"] for turn in found]
            halves = [statistics.median(turn["seconds"]) for turn in found]
            work = [turn["processor"] for turn in found]
            same = sum(found[0]["texts"][file] == text for file, text in found[1]["texts"].items())
            raw.append(
                {
                    "first": labels[pair % 2],
                    "requests_per_second": dict(zip(labels, speeds, strict=True)),
                    "p50": dict(zip(labels, halves, strict=True)),
                    "processor_seconds": dict(zip(labels, work, strict=True)),
                    "ratio": speeds[1] / speeds[0],
                    "same_text": same,
                }
            )
            cells = [f"{speeds[1]:.2f}", f"{speeds[0]:.2f}", f"{raw[-1]['ratio']:.2f}"]
            others = [f"{value:.2f}" for value in (halves[1], halves[0], work[1], work[0], work[1] / work[0])]
            rows.append([str(pair + 1), labels[pair % 2], *cells, *others, f"{same}/{requests}"])
            print(*rows[-1], flush=True)
    ratios = [pair["ratio"] for pair in raw]
    middle = statistics.median(ratios)
    # Of each column of numbers.
    medians = [statistics.median(float(row[column]) for row in rows) for column in range(2, len(rows[0]) - 1)]
    rows.append(["median", "", *(f"{value:.2f}" for value in medians), ""])
    note = (
        f"vLLM {vllm.__version__} on the CPU without compilation, {dtype}, a cache of {cache_bytes >> 20} MiB each, "
        f"the same options for both; {clients} clients in a closed loop over loopback, {requests} recordings per turn, "
        f"client and server on one processor. Ratio of requests per second within each pair: "
        f"median {middle:.2f}, from {min(ratios):.2f} to {max(ratios):.2f}. CPU s: processor time per request of the "
        "process that runs the model."
    )
    pair_of = {unit: [f"{label}, {unit}" for label in reversed(labels)] for unit in ("requests/s", "p50 s", "CPU s")}
    columns = [*pair_of["requests/s"], "ratio", *pair_of["p50 s"], *pair_of["CPU s"], "ratio of CPU s", "same text"]
    write_results(name, note, ["pair", "first", *columns], rows, raw)


def processor_seconds(server: int) -> float:
    """Of vLLM's worker among the descendants of a process, so far."""
    workers = [child for child in psutil.Process(server).children(recursive=True) if "Worker" in child.cmdline()[0]]
    if len(workers) != 1:
        raise RuntimeError(f"{len(workers)} workers of vLLM's, one is expected")
    times = workers[0].cpu_times()
    return times.user + times.system


if __name__ == "__main__":
    typer.run(main)
