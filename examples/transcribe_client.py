"""Send recordings to a server that speaks OpenAI's protocol, a few at a time: `vllm serve` or `transformers serve`.

Needs `pip install openai`. What comes out: one JSON line per recording, `{"file": …, "text": …}`, or `"error"` with the
server's sentence. The same command again goes on after the last line and tries again what failed. Several servers share
the recordings; one that does not answer is passed over.

    python examples/transcribe_client.py recordings/ out.jsonl --server http://127.0.0.1:8000/v1 --language en
"""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from openai import APIConnectionError, APIStatusError, AsyncOpenAI, InternalServerError, OpenAIError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".m4a", ".webm")


def main(
    recordings: Annotated[Path, typer.Argument(exists=True, help="A folder, or one file.")],
    output: Path,
    server: Annotated[list[str] | None, typer.Option(help="Base URL; several times for several servers.")] = None,
    model: Annotated[str | None, typer.Option(help="Default: the first that each server names.")] = None,
    language: str | None = None,
    clients: Annotated[int, typer.Option(min=1, help="Recordings on their way at a time.")] = 8,
    retries: Annotated[int, typer.Option(min=0, help="Of a recording, with growing pauses.")] = 4,
    timeout: Annotated[
        float, typer.Option(help="Seconds to wait: a server that is being ended may answer never.")
    ] = 120.0,
    api_key: Annotated[str, typer.Option(envvar="OPENAI_API_KEY")] = "none",
):
    files = sorted(p for p in recordings.rglob("*") if p.suffix in SUFFIXES) if recordings.is_dir() else [recordings]
    done = finished(output)
    left = [file for file in files if str(file) not in done]
    servers = [
        AsyncOpenAI(base_url=url, api_key=api_key, max_retries=retries, timeout=timeout)
        for url in server or ["http://127.0.0.1:8000/v1"]
    ]
    started = time.monotonic()
    failed = asyncio.run(send_all(left, output, servers, model, language, clients))
    typer.echo(
        f"{len(left) - failed} transcribed, {failed} failed, {len(files) - len(left)} done before, "
        f"{time.monotonic() - started:.1f} s"
    )
    raise typer.Exit(1 if failed else 0)


def finished(output: Path) -> set[str]:
    """The files that have a text in `output`. A last line that a kill cut short is taken off."""
    if not output.exists():
        return set()
    whole = output.read_bytes()
    kept = whole[: whole.rfind(b"\n") + 1]
    if len(kept) < len(whole):
        output.write_bytes(kept)
    lines = [json.loads(line) for line in kept.splitlines()]
    return {line["file"] for line in lines if "text" in line}


async def send_all(
    files: list[Path],
    output: Path,
    servers: list[AsyncOpenAI],
    model: str | None,
    language: str | None,
    clients: int,
) -> int:
    """Send `files` from `clients` tasks that take the next one as they finish; returns how many failed."""
    failed = 0
    waiting: Iterator[tuple[int, Path]] = iter(enumerate(files))  # shared by the tasks
    with (
        output.open("a", encoding="utf-8") as lines,
        Progress(
            "Sending", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)
        ) as bar,
    ):
        task = bar.add_task("", total=len(files))

        async def client() -> None:
            nonlocal failed
            for number, file in waiting:
                first = number % len(servers)
                line = await send(file, servers[first:] + servers[:first], model, language)
                failed += "error" in line
                lines.write(json.dumps({"file": str(file), **line}, ensure_ascii=False) + "\n")
                lines.flush()
                bar.advance(task)

        await asyncio.gather(*(client() for _ in range(clients)))
    return failed


async def send(file: Path, servers: list[AsyncOpenAI], model: str | None, language: str | None) -> dict[str, str]:
    """The answer to one recording: of the first server that answers. What the client refuses is not asked elsewhere."""
    error = ""
    for server in servers:
        try:
            name = model or (await server.models.list()).data[0].id
            options = {} if language is None else {"language": language}
            answer = await server.audio.transcriptions.create(file=file, model=name, temperature=0.0, **options)
            return {"text": answer.text.strip()}
        except (APIConnectionError, InternalServerError) as problem:
            error = f"{server.base_url}: {problem}"
        except (APIStatusError, OpenAIError, OSError) as problem:
            return {"error": f"{server.base_url}: {problem}"}
    return {"error": error}


if __name__ == "__main__":
    typer.run(main)
