"""vLLM with stock Whisper beside vLLM with converted models: what fits into a cache of one size, and what comes out.

Each model is served by a process of its own, one after the other, with the same options. vLLM's own figures (tokens of
cache, maximum concurrency) are read from what it logs, the requests that ran at once from its metrics. In a closed loop
each client sends its next recording as soon as the last is answered; none is sent twice to a server, since the plug-in
keeps the encoder's outputs of what it heard last. With --beams: beam search, to which vLLM comes back for every token.
Needs whisper-mla[vllm].

    python benchmarks/serving.py speech/ stock=whisper-base exact=whisper-base-mla --cache-only d/4=whisper-base-quarter
    python benchmarks/serving.py speech/ stock=whisper-base exact=base-mla --name serving_beams --beams 3 --clients 1
"""

import asyncio
import itertools
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import httpx
import typer
import vllm
from openai import AsyncOpenAI
from result_files import write_results

COLUMNS = [
    "model",
    "cache, tokens",
    "max. concurrency",
    "clients",
    "at once",
    "requests/s",
    "p50 s",
    "p95 s",
    "same text",
]
# Recordings that are sent before anything is measured.
WARM = 2


def main(
    speech: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Recordings up to 30 s.")],
    models: Annotated[list[str], typer.Argument(help="NAME=FOLDER; the first is what the others are compared with.")],
    cache_only: Annotated[
        list[str] | None, typer.Option(help="NAME=FOLDER of which only the cache is looked at.")
    ] = None,
    clients: Annotated[list[int] | None, typer.Option()] = None,
    cache_bytes: int = 256 << 20,
    requests: Annotated[int, typer.Option(help="With several clients; a single one sends a third, at least 8.")] = 24,
    beams: Annotated[int, typer.Option(help="Beam search of so many beams, one recording per client.")] = 0,
    beam_tokens: Annotated[int, typer.Option(help="vLLM's beam search always goes on to the last of them.")] = 12,
    dtype: str = "float32",
    name: str = "serving",
):
    options = {"use_beam_search": True, "n": beams, "max_completion_tokens": beam_tokens} if beams else {}
    # How many recordings each number of clients sends.
    loops = {number: requests if number > 1 else max(8, requests // 3) for number in clients or [1, 8, 32]}
    if beams:
        loops = {number: number for number in loops}
    recordings = sorted(path for path in speech.iterdir() if path.suffix in (".flac", ".wav"))
    if len(recordings) < WARM + sum(loops.values()):
        raise typer.BadParameter(f"{speech} has {len(recordings)} recordings, {WARM + sum(loops.values())} are needed.")
    rows, raw, texts = [], [], {}
    for model in [*models, *(cache_only or [])]:
        label, folder = model.split("=", 1)
        with served(folder, cache_bytes, dtype) as server:
            figures = {"model": label, "cache_tokens": server.cache_tokens, "max_concurrency": server.max_concurrency}
            start = [label, f"{server.cache_tokens:,}", f"{server.max_concurrency:.2f}×"]
            if model in (cache_only or []):
                raw.append(figures)
                rows.append([*start, *[""] * (len(COLUMNS) - 3)])
                continue
            fresh = iter(recordings)
            asyncio.run(closed_loop(server.url, list(itertools.islice(fresh, WARM)), 1, options))
            for number, count in loops.items():
                sent = list(itertools.islice(fresh, count))
                found = asyncio.run(closed_loop(server.url, sent, number, options))
                first = texts.setdefault("of", {})
                same = sum(first.setdefault(path, text) == text for path, text in found["texts"].items())
                seconds = sorted(found["seconds"])
                result = {
                    "clients": number,
                    "requests": len(sent),
                    "most_at_once": found["most_at_once"],
                    "requests_per_second": len(sent) / found["total"],
                    "p50": statistics.median(seconds),
                    "p95": seconds[round(0.95 * (len(seconds) - 1))],
                    "same_text": same,
                }
                raw.append(figures | result)
                rows.append(
                    [
                        *start,
                        str(number),
                        str(result["most_at_once"]),
                        f"{result['requests_per_second']:.2f}",
                        f"{result['p50']:.2f}",
                        f"{result['p95']:.2f}",
                        f"{same}/{len(sent)}",
                    ]
                )
                start = ["", "", ""]
    note = (
        f"vLLM {vllm.__version__} on the CPU without compilation, {dtype}, a cache of {cache_bytes >> 20} MiB, the "
        "same options for all. Tokens of cache and maximum concurrency (requests of 448 text positions and 1500 audio "
        "frames) are vLLM's own figures; “at once” is the most requests that its metrics showed running. Closed loop "
        "over loopback; client and server share the processor. “Same text”: as the first model's. Models without "
        "clients: of their cache alone."
    )
    if beams:
        note += (
            f" Beam search of {beams} beams and {beam_tokens} tokens: vLLM makes each token of each beam a request of "
            "its own and does not stop before the last token."
        )
    write_results(name, note, COLUMNS, rows, raw)


class Server:
    """A started vLLM and what it said of its cache."""

    def __init__(self, url: str, log: str, process: int):
        self.url, self.process = url, process
        found = re.search(
            r"KV cache size: ([\d,]+) tokens, Maximum concurrency for [\d,]+ tokens per request: ([\d.]+)x", log
        )
        if found is None:
            raise RuntimeError(f"vLLM did not log its cache size:\n{log}")
        self.cache_tokens, self.max_concurrency = int(found[1].replace(",", "")), float(found[2])


@contextmanager
def served(folder: str, cache_bytes: int, dtype: str):
    """Start vLLM on a free port of this machine, wait until it answers, and end it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder]
    options = {
        "--served-model-name": "served",
        "--host": "127.0.0.1",
        "--port": port,
        "--dtype": dtype,
        "--kv-cache-memory-bytes": cache_bytes,
        "--max-num-seqs": 32,
        # The encoder's budget too, which vLLM takes for the length of each request's audio: one window of frames.
        "--max-num-batched-tokens": 1500,
    }
    arguments = [str(part) for option in options.items() for part in option]
    process = subprocess.Popen(
        [*command, *arguments, "--enforce-eager"], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    log = []
    try:
        for line in process.stdout:
            log.append(line)
            if "Application startup complete" in line:
                break
        else:
            raise RuntimeError("vLLM did not start:\n" + "".join(log[-60:]))
        threading.Thread(target=lambda: deque(process.stdout, maxlen=0), daemon=True).start()
        # It listens shortly after it has said so.
        with httpx.Client(transport=httpx.HTTPTransport(retries=6), timeout=60) as client:
            client.get(f"http://127.0.0.1:{port}/health").raise_for_status()
        yield Server(f"http://127.0.0.1:{port}/v1", "".join(log), process.pid)
    finally:
        process.terminate()
        process.wait(timeout=60)


async def closed_loop(url: str, recordings: list[Path], clients: int, options: dict) -> dict:
    """Send the recordings from `clients` clients; seconds of each, seconds of all, texts, the most that ran at once.

    `options`: fields of each request that OpenAI's protocol does not have.
    """
    server = AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=600)
    waiting = iter(recordings)
    seconds, texts, running = [], {}, [0]

    async def client():
        for path in waiting:
            started = time.perf_counter()
            answer = await server.audio.transcriptions.create(
                file=path, model="served", language="en", temperature=0.0, extra_body=options
            )
            seconds.append(time.perf_counter() - started)
            texts[path.name] = answer.text

    async def watch():
        while True:
            metrics = await server.get(url.removesuffix("/v1") + "/metrics", cast_to=str)
            found = re.search(r"^vllm:num_requests_running\S* ([\d.]+)$", metrics, flags=re.MULTILINE)
            running.append(int(float(found[1])) if found else 0)
            await asyncio.sleep(0.25)

    started = time.perf_counter()
    watching = asyncio.create_task(watch())
    await asyncio.gather(*(client() for _ in range(clients)))
    total = time.perf_counter() - started
    watching.cancel()
    await server.close()
    return {"seconds": seconds, "total": total, "texts": texts, "most_at_once": max(running)}


if __name__ == "__main__":
    typer.run(main)
