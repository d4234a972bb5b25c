"""The example client against a small server on loopback: bounded, retried, passed on, resumed."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import soundfile
import typer

from tests.test_examples import load

pytest.importorskip("openai", reason="the client needs openai, which is in the [test] extra")


class Server(ThreadingHTTPServer):
    """Answers with the length of the recording. `faults` are statuses that are answered first, one each."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: list[int] = []
        self.lock, self.at_once, self.most_at_once, self.answered = threading.Lock(), 0, 0, []
        self.meeting: threading.Barrier | None = None
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def answer(self, status: int, content: dict):
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in (("Content-Type", "application/json"), ("Content-Length", len(body)), ("retry-after-ms", 1)):
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(200, {"object": "list", "data": [{"id": "served", "object": "model"}]})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
            fault = self.server.faults.pop(0) if self.server.faults else 200
        if self.server.meeting is not None:
            self.server.meeting.wait(timeout=30)
        with self.server.lock:
            self.server.at_once -= 1
            self.server.answered.append(fault)
        name = body.split(b'filename="')[1].split(b'"')[0].decode()
        model = body.split(b'name="model"\r\n\r\n')[1].split(b"\r\n")[0].decode()
        self.answer(fault, {"text": f" {name} by {model} "} if fault == 200 else {"error": {"message": f"no: {name}"}})


@pytest.fixture
def server():
    made = Server()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def recordings(tmp_path):
    folder = tmp_path / "recordings"
    folder.mkdir()
    for number in range(6):
        soundfile.write(folder / f"{number}.wav", [0.0] * 160, 16_000)
    (folder / "notes.txt").write_text("no recording")
    return folder


def run(recordings, output, *servers, **options) -> int:
    try:
        load("transcribe_client").main(
            recordings, output, server=[s if isinstance(s, str) else s.url for s in servers], **DEFAULTS | options
        )
    except typer.Exit as done:
        return done.exit_code
    raise AssertionError("it did not end with an exit code")


DEFAULTS = {"model": None, "language": "en", "clients": 3, "retries": 2, "timeout": 30.0, "api_key": "none"}


def lines(output) -> dict[str, dict]:
    found = [json.loads(line) for line in output.read_text().splitlines()]
    return {line["file"].rsplit("/", 1)[1]: line for line in found}


def test_as_many_at_a_time_as_asked_for(recordings, server, tmp_path):
    server.meeting = threading.Barrier(3)  # two rounds of three: fewer at a time would wait in vain
    assert run(recordings, tmp_path / "out", server) == 0
    assert server.most_at_once == 3
    assert {name: line["text"] for name, line in lines(tmp_path / "out").items()} == {
        f"{number}.wav": f"{number}.wav by served" for number in range(6)
    }


def test_what_fails_for_a_moment_is_tried_again(recordings, server, tmp_path, capsys):
    server.faults = [503, 429]
    assert run(recordings, tmp_path / "out", server, clients=1) == 0
    assert server.answered == [503, 429, *[200] * 6]
    assert "6 transcribed, 0 failed, 0 done before" in capsys.readouterr().out


def test_what_is_refused_is_a_line_and_tried_again_by_the_next_run_alone(recordings, server, tmp_path, capsys):
    server.faults = [400]
    assert run(recordings, tmp_path / "out", server, clients=1) == 1
    assert "no: 0.wav" in lines(tmp_path / "out")["0.wav"]["error"]
    with (tmp_path / "out").open("a") as output:
        output.write('{"file": "cut sho')
    capsys.readouterr()
    assert run(recordings, tmp_path / "out", server, clients=1) == 0
    assert server.answered == [400, *[200] * 6]
    assert lines(tmp_path / "out")["0.wav"]["text"] == "0.wav by served"
    assert "1 transcribed, 0 failed, 5 done before" in capsys.readouterr().out


def test_servers_share_the_work_and_one_that_is_gone_is_passed_over(recordings, server, tmp_path):
    other = Server()
    assert run(recordings, tmp_path / "both", server, other) == 0
    assert (len(server.answered), len(other.answered)) == (3, 3)
    other.shutdown()
    other.server_close()
    assert run(recordings, tmp_path / "one", other.url, server, retries=0) == 0
    assert len(server.answered) == 9


def test_without_any_server_every_line_says_so(recordings, tmp_path):
    gone = Server()
    gone.shutdown()
    gone.server_close()
    assert run(recordings, tmp_path / "out", gone.url, retries=0) == 1
    assert all(
        "Connection error" in line["error"] and gone.url in line["error"] for line in lines(tmp_path / "out").values()
    )
