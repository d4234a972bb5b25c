"""`convert` and `transcribe --output-dir`, killed with SIGKILL at 20 random moments each, leave nothing that misleads.

The moments are drawn, with a fixed seed, among all at which the command touches a file in the folders of the test (as
Python's audit events tell), so that the same run is killed at the same places whatever the machine does. Among them is
always each rename.
"""

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from transformers import WhisperProcessor

from whisper_mla import WhisperMLAForConditionalGeneration

from .tiny import tiny_whisper

pytestmark = pytest.mark.kills

MOMENTS = 20
RECORDS = ("conversion.json", "report.json", "README.md")

# Children are forked from a server that has imported everything and started no threads.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    ["whisper_mla.command_line.app", "matplotlib.figure", "matplotlib.backends.backend_agg"]
)


def run_command(arguments: list[str], room: str, moment: int | None, events) -> None:
    """In the child: run a command, tell every event that touches `room`, and die at the event number `moment`."""
    from whisper_mla.command_line.app import app

    torch.set_num_threads(1)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1), os.dup2(nothing, 2)
    seen: list[str] = []

    def hook(event: str, details: tuple) -> None:
        if event.startswith(("open", "os.", "shutil.", "tempfile.")) and any(room in str(part) for part in details):
            if len(seen) == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            seen.append(event)

    sys.addaudithook(hook)
    try:
        app(arguments, standalone_mode=False)
    finally:
        events.send(seen)


def run(arguments: list, room: Path, moment: int | None = None) -> tuple[int, list[str]]:
    """Exit code (negative: the signal) and, of a run that was not killed, its events."""
    ours, theirs = processes.Pipe(duplex=False)
    child = processes.Process(target=run_command, args=([str(part) for part in arguments], str(room), moment, theirs))
    child.start()
    theirs.close()
    try:
        events = ours.recv()
    except EOFError:
        events = []
    child.join()
    return child.exitcode, events


def moments(events: list[str], seed: int) -> list[int]:
    """20 of the moments: those right before and right after each rename, the others at random."""
    renames = [number for number, event in enumerate(events) if event == "os.rename"]
    chosen = {near for number in renames for near in (number, number + 1) if near < len(events)}
    assert chosen and len(events) >= MOMENTS
    others = sorted(set(range(len(events))) - chosen)
    random.Random(seed).shuffle(others)
    chosen = [*sorted(chosen)[: MOMENTS // 2], *others]
    return chosen[:MOMENTS]


def contents(folder: Path) -> dict[str, bytes]:
    """Visible files, those that tell of time and place by name only."""
    files = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return {path.name: b"" if path.name in RECORDS else path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def source(tmp_path_factory, digits_folder) -> Path:
    """A tiny stock Whisper with a processor, in shards."""
    folder = tmp_path_factory.mktemp("kills") / "source"
    tiny_whisper(digits_folder).save_pretrained(folder, max_shard_size="40KB")
    WhisperProcessor.from_pretrained(digits_folder).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("overwrite", [False, True], ids=["new target", "overwrite"])
def test_convert(source, tmp_path, overwrite):
    untouched = contents(source)
    before = tmp_path / "before"
    before.mkdir()
    if overwrite:
        assert run(["convert", source, before / "model", "--dtype", "float16"], before)[0] == 0
    old = contents(before / "model") if overwrite else {}

    def prepare(room: Path) -> list:
        shutil.copytree(before, room)
        return [
            "convert",
            source,
            room / "model",
            *(["--overwrite"] if overwrite else ["--kv-rank", "4", "--method", "joint_svd"]),
        ]

    code, events = run(prepare(tmp_path / "whole"), tmp_path / "whole")
    assert code == 0
    new = contents(tmp_path / "whole" / "model")
    assert new["config.json"] != old.get("config.json")

    absent = 0
    for moment in moments(events, seed=int(overwrite)):
        room = tmp_path / str(moment)
        arguments = prepare(room)
        assert run(arguments, room, moment)[0] == -signal.SIGKILL
        target = room / "model"
        if target.exists():
            assert contents(target) in (old, new)
        else:
            absent += 1
            # Where there was a checkpoint, it still is, whole, under a hidden name.
            kept = [contents(folder) for folder in room.glob(".model.replaced-*")]
            assert kept == ([old] if overwrite else [])
        assert contents(source) == untouched
        assert run(arguments, room)[0] == 0
        assert contents(target) == new
        assert not list(room.glob(".model.partial-*"))
    assert absent >= (1 if overwrite else MOMENTS // 2)


def test_transcribe(source, tmp_path):
    model = tmp_path / "model"
    WhisperMLAForConditionalGeneration.from_whisper(str(source), kv_rank=4, method="joint_svd").save_pretrained(model)
    WhisperProcessor.from_pretrained(source).save_pretrained(model)
    generator = torch.Generator().manual_seed(0)
    audios = [tmp_path / f"noise{number}.wav" for number in range(6)]
    for path in audios:
        soundfile.write(path, (torch.randn(16_000, generator=generator) / 10).numpy(), 16_000)
    untouched = contents(model), {path: path.read_bytes() for path in audios}

    def arguments(room: Path) -> list:
        return ["transcribe", model, *audios, "--format", "json", "--batch-size", "2", "--output-dir", room / "out"]

    (tmp_path / "whole").mkdir()
    code, events = run(arguments(tmp_path / "whole"), tmp_path / "whole")
    assert code == 0
    expected = contents(tmp_path / "whole" / "out")
    assert len(expected) == len(audios) and len({json.loads(text)["text"] for text in expected.values()}) > 1

    for moment in moments(events, seed=2):
        room = tmp_path / str(moment)
        room.mkdir()
        assert run(arguments(room), room, moment)[0] == -signal.SIGKILL
        done = contents(room / "out") if (room / "out").exists() else {}
        assert done.items() <= expected.items()
        assert (contents(model), {path: path.read_bytes() for path in audios}) == untouched
        assert run([*arguments(room), "--resume"], room)[0] == 0
        assert contents(room / "out") == expected
