"""The HTTP server: what users send, right and wrong, and that it goes on answering."""

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import uuid
from collections import deque
from contextlib import contextmanager

import numpy as np
import pytest
import soundfile
import typer

from tests.test_examples import load
from tests.vllm.conftest import greedy, serve_options, vllm_environment
from whisper_mla import WhisperMLAForConditionalGeneration

pytest.importorskip("vllm", reason="needs the [vllm] extra")
pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def folder(digits, processor, tmp_path_factory):
    made = tmp_path_factory.mktemp("served") / "digits"
    WhisperMLAForConditionalGeneration.from_whisper(digits).save_pretrained(made)
    processor.save_pretrained(made)
    return made


def until_connected(port: int) -> None:
    """Wait for the server to listen, which it does shortly after it has said that it started."""
    import httpx

    with httpx.Client(transport=httpx.HTTPTransport(retries=6), timeout=60) as client:
        assert client.get(f"http://127.0.0.1:{port}/health").status_code == 200


@contextmanager
def started(folder):
    """A server on a free port of this machine, in a process group of its own; yields the base URL and the process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    options = [*serve_options(), "--served-model-name", "digits", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        [*command, *options],
        env=vllm_environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    said = deque(maxlen=100)
    try:
        for line in process.stdout:
            said.append(line)
            if "Application startup complete" in line:
                break
        else:
            raise AssertionError("vLLM did not start:\n" + "".join(said))
        threading.Thread(target=lambda: deque(process.stdout, maxlen=0), daemon=True).start()
        until_connected(port)
        yield f"http://127.0.0.1:{port}/v1", process
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.fixture(scope="module")
def server(folder):
    with started(folder) as (url, _):
        yield url


def wav(samples) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.asarray(samples, dtype=np.float32), 16_000, format="WAV", subtype="FLOAT")
    return file.getvalue()


def send(server: str, audio: bytes | None, path: str = "transcriptions", **fields) -> tuple[int, bytes]:
    """Status and answer of a multipart request; without audio, of one that has no file."""
    boundary = uuid.uuid4().hex
    fields = {"model": "digits", "language": "en", "temperature": 0, "max_completion_tokens": 40} | fields
    parts = [f'--{boundary}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()]
    file = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    sent = b"" if audio is None else file.encode() + audio + b"\r\n"
    body = "".join(parts).encode() + sent + f"--{boundary}--\r\n".encode()
    request = urllib.request.Request(
        f"{server}/audio/{path}", body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def post(server: str, audio: bytes | None, path: str = "transcriptions", **fields) -> tuple[int, dict]:
    """Status and decoded answer."""
    status, answer = send(server, audio, path, **fields)
    return status, json.loads(answer)


@pytest.fixture(scope="module")
def expected(folder, processor, clips) -> str:
    """What our Transformers model makes of the first clip, greedy and nothing forbidden."""
    model = WhisperMLAForConditionalGeneration.from_pretrained(folder, dtype="float32").eval()
    features = processor(clips["clip00"]["samples"], sampling_rate=16_000, return_tensors="pt").input_features
    ids = processor.tokenizer.convert_tokens_to_ids
    prompt = [ids(name) for name in ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")]
    return processor.decode(greedy(model, features, prompt, 40), skip_special_tokens=True)


def test_a_recording_is_transcribed(server, clips, expected):
    assert post(server, clips["clip00"]["path"].read_bytes()) == (200, {"text": expected, "usage": ANY_USAGE})


class Anything:
    def __eq__(self, other):
        return True


ANY_USAGE = Anything()

BAD = {
    "no samples": ({"audio": wav([])}, 400, "0 samples"),
    "not a number": ({"audio": wav([0.1, float("nan")])}, 400, "NaN"),
    "not audio": ({"audio": b"hello"}, 400, "audio"),
    "an empty file": ({"audio": b""}, 400, "audio"),
    "a header alone": ({"audio": wav([0.1] * 16_000)[:30]}, 400, "audio"),
    "no file": ({"audio": None}, 400, "file"),
    "ten hours": ({"audio": "ten hours"}, 400, "duration"),
    "language": ({"language": "xx"}, 400, "xx"),
    "format": ({"response_format": "srt"}, 400, "response_format"),
    "temperature": ({"temperature": -1}, 400, "temperature"),
    "model": ({"model": "other"}, 404, "other"),
    "prompt": ({"prompt": "one two " * 300}, 400, "length"),
    "no beams": ({"use_beam_search": "true", "n": 0}, 400, "beam_width"),
    "too many beams": ({"use_beam_search": "true", "n": 11}, 400, "logprobs"),
    "no tokens": ({"max_completion_tokens": 0}, 400, "max_tokens"),
    "granularity": ({"timestamp_granularities[]": "minute"}, 400, "segment"),
    "streamed segments": ({"response_format": "verbose_json", "stream": "true"}, 400, "streaming"),
    "language of a translation": ({"path": "translations", "language": "xx"}, 400, "xx"),
    "nothing to translate": ({"path": "translations", "audio": b"hello"}, 400, "audio"),
    "streamed beams": ({"use_beam_search": "true", "n": 2, "stream": "true"}, 400, "Streaming"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_answered_with_a_sentence_and_the_engine_lives(name, server, clips, expected):
    fields, status, said = BAD[name]
    fields = {"audio": clips["clip00"]["path"].read_bytes()} | fields
    if fields["audio"] == "ten hours":
        file = io.BytesIO()
        soundfile.write(file, np.zeros(16_000 * 36_000, dtype=np.int16), 16_000, format="FLAC")
        fields["audio"] = file.getvalue()
    found, answer = post(server, **fields)
    assert (found, said in json.dumps(answer)) == (status, True), answer
    assert post(server, clips["clip00"]["path"].read_bytes())[1]["text"] == expected


@pytest.mark.parametrize(
    "options",
    [
        {"path": "translations"},
        {"prompt": "one two"},
        {"response_format": "verbose_json"},
        {"use_beam_search": "true", "n": 3, "max_completion_tokens": 8},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_vllms_own_whisper_can_do(options, server, clips):
    status, answer = post(server, clips["clip00"]["path"].read_bytes(), **options)
    assert status == 200 and answer["text"].strip(), answer


def test_a_streamed_answer_is_the_whole_one(server, clips, expected):
    status, answer = send(server, clips["clip00"]["path"].read_bytes(), stream="true")
    lines = [line.removeprefix("data: ") for line in answer.decode().splitlines() if line]
    assert status == 200 and lines.pop() == "[DONE]" and len(lines) > 2
    assert "".join(json.loads(line)["choices"][0]["delta"].get("content") or "" for line in lines) == expected


def client(recordings, output, servers: list[str]) -> dict[str, str]:
    """Texts by name, of a run of the example client that must not fail."""
    with pytest.raises(typer.Exit) as done:
        load("transcribe_client").main(
            recordings, output, servers, None, "en", clients=2, retries=1, timeout=120.0, api_key="none"
        )
    assert done.value.exit_code == 0
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    return {line["file"].rsplit("/", 1)[1]: line["text"] for line in lines}


def test_the_example_client(server, clips, tmp_path, expected):
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    for name in ("clip00", "clip03"):
        soundfile.write(recordings / f"{name}.wav", clips[name]["samples"], 16_000)
    texts = client(recordings, tmp_path / "out", [server])
    assert len(texts) == 2 and texts["clip00.wav"].startswith(expected.strip())


def test_a_server_that_dies_leaves_its_recordings_to_the_other(server, folder, clips, tmp_path, monkeypatch):
    """Killed with a recording of its own on its way, after it has answered some."""
    from openai import APIConnectionError
    from openai.resources.audio import AsyncTranscriptions

    recordings = tmp_path / "recordings"
    recordings.mkdir()
    for number in range(12):
        soundfile.write(recordings / f"{number:02}.wav", clips[f"clip0{number % 4}"]["samples"], 16_000)
    one = client(recordings, tmp_path / "one", [server])
    with started(folder) as (url, process):
        create, answered, failed = AsyncTranscriptions.create, [], []

        async def counted(self, **options):
            here = str(self._client.base_url).startswith(url)
            if here and len(answered) == 2:
                asyncio.get_running_loop().call_later(0.05, os.killpg, process.pid, signal.SIGKILL)
            try:
                found = await create(self, **options)
            except APIConnectionError:
                failed.append(url)
                raise
            if here:
                answered.append(options["file"])
            return found

        monkeypatch.setattr(AsyncTranscriptions, "create", counted)
        two = client(recordings, tmp_path / "two", [server, url])
    assert len(answered) >= 2 and failed
    assert two == one and len(two) == 12


def test_a_refused_start_says_why(folder):
    """One whole start; test_start.py has the others."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    options = [*serve_options(), "--kv-cache-dtype", "fp8"]
    done = subprocess.run([*command, *options], env=vllm_environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode != 0
    assert "--kv-cache-dtype fp8: latents are cached in the model's dtype" in done.stdout + done.stderr
