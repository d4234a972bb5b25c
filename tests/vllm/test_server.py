"""The HTTP server: what users send, right and wrong, and that it goes on answering."""

import io
import json
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import uuid
from collections import deque

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


@pytest.fixture(scope="module")
def server(folder):
    """The base URL of a server on a free port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    options = [*serve_options(), "--served-model-name", "digits", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        [*command, *options], env=vllm_environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
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
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=60)


def wav(samples) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.asarray(samples, dtype=np.float32), 16_000, format="WAV", subtype="FLOAT")
    return file.getvalue()


def post(server: str, audio: bytes, path: str = "transcriptions", **fields) -> tuple[int, dict]:
    """Status and answer of a multipart request."""
    boundary = uuid.uuid4().hex
    fields = {"model": "digits", "language": "en", "temperature": 0, "max_completion_tokens": 40} | fields
    parts = [f'--{boundary}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()]
    file = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    body = "".join([*parts, file]).encode() + audio + f"\r\n--{boundary}--\r\n".encode()
    request = urllib.request.Request(
        f"{server}/audio/{path}", body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


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
    "ten hours": ({"audio": "ten hours"}, 400, "duration"),
    "language": ({"language": "xx"}, 400, "xx"),
    "format": ({"response_format": "srt"}, 400, "response_format"),
    "temperature": ({"temperature": -1}, 400, "temperature"),
    "model": ({"model": "other"}, 404, "other"),
    "prompt": ({"prompt": "one two " * 300}, 400, "length"),
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


def test_the_example_client(server, clips, tmp_path, expected):
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    for name in ("clip00", "clip03"):
        soundfile.write(recordings / f"{name}.wav", clips[name]["samples"], 16_000)
    with pytest.raises(typer.Exit) as done:
        load("transcribe_client").main(
            recordings, tmp_path / "out", [server], None, "en", clients=2, retries=1, timeout=120.0, api_key="none"
        )
    assert done.value.exit_code == 0
    lines = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    texts = {line["file"].rsplit("/", 1)[1]: line["text"] for line in lines}
    assert len(texts) == 2 and texts["clip00.wav"].startswith(expected.strip())


REFUSED = {
    "latent_dtype": ({"latent_dtype": "int4"}, [], "--hf-overrides"),
    "kv_cache_dtype": ({}, ["--kv-cache-dtype", "fp8"], "--kv-cache-dtype fp8"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_vllm_cannot_hold_ends_with_the_remedy(name, folder, tmp_path):
    changes, options, said = REFUSED[name]
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(tmp_path)]
    done = subprocess.run(
        [*command, *serve_options(), *options], env=vllm_environment(), capture_output=True, text=True, timeout=200
    )
    assert done.returncode != 0
    assert said in done.stdout + done.stderr
