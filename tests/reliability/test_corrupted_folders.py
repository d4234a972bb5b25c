"""2,000 damaged checkpoint folders: each command gives the right result, or one clear error and nothing else.

The right result: the files that the undamaged folder gives, but for what a damaged file says by itself. A config.json
with another valid value (`"activation_function": "relu"`) is believed; so are a generation config and a tokenizer that
can be read. Weights never change unnoticed, with one exception that no program can notice: values in a stock
checkpoint, of which no checksum is recorded. They are not damaged here except by NaN and infinity, which are caught.
"""

import json
import os
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load
from transformers import WhisperProcessor
from typer.testing import CliRunner

from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.command_line.app import app

from .corruption import damage
from .tiny import tiny_whisper

pytestmark = pytest.mark.properties

# 2,000; fewer only where a run says so (CI at the oldest Transformers).
EXAMPLES, PARTS = int(os.environ.get("WHISPER_MLA_EXAMPLES", "2000")), 8
COMMANDS = {"stock": ["convert", "transcribe", "inspect"], "converted": ["export", "transcribe", "inspect"]}
# Not inputs of any command, or (all but the code) different for every folder.
NOT_COMPARED = (".py", "conversion.json", "report.json", "README.md")
PROCESSOR_FILES = {"processor_config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"}

runner = CliRunner()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory, digits_folder) -> dict[str, Path]:
    """Undamaged folders: a tiny stock Whisper in one file and in shards, and its conversion with a record."""
    root = tmp_path_factory.mktemp("pristine")
    processor = WhisperProcessor.from_pretrained(digits_folder)
    stock = tiny_whisper(digits_folder)
    model = WhisperMLAForConditionalGeneration.from_whisper(stock, kv_rank=[4, 8], cross_kv_rank=3)
    model.conversion_record = model.conversion_record or {"source": "random weights"}
    stock.save_pretrained(root / "stock")
    stock.save_pretrained(root / "sharded", max_shard_size="40KB")
    model.save_pretrained(root / "converted")
    for folder in root.iterdir():
        processor.save_pretrained(folder)
    assert len(list((root / "sharded").glob("*.safetensors"))) > 1
    assert json.loads((root / "converted" / "conversion.json").read_text())["weights"]
    return {folder.name: folder for folder in root.iterdir()}


@pytest.fixture(scope="module")
def speech_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("audio") / "noise.wav"
    noise = torch.randn(16_000, generator=torch.Generator().manual_seed(0)) / 10
    soundfile.write(path, noise.numpy(), 16_000)
    return path


def run(command: str, folder: Path, target: Path, speech_file: Path):
    arguments = {
        "convert": [folder, target],
        "export": [folder, target],
        "transcribe": [folder, speech_file],
        "inspect": [folder, "--json"],
    }
    return runner.invoke(app, [command, *map(str, arguments[command])])


@pytest.fixture(scope="module")
def expected(pristine, speech_file, tmp_path_factory) -> dict[tuple[str, str], dict[str, bytes] | str]:
    """What each command gives for the undamaged folders: files, or what it prints."""
    results = {}
    for name, folder in pristine.items():
        for command in COMMANDS["converted" if name == "converted" else "stock"]:
            target = tmp_path_factory.mktemp("expected") / "target"
            result = run(command, folder, target, speech_file)
            assert result.exit_code == 0, result.output
            assert result.stdout.strip()
            results[name, command] = contents(target) if target.exists() else printed(result, folder)
    return results


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def printed(result, folder: Path) -> str:
    """Without the record of the conversion: a changed date in it is not a changed model."""
    text = result.stdout.replace(str(folder), "FOLDER")
    if not text.startswith("{"):
        return text
    return json.dumps({name: value for name, value in json.loads(text).items() if name not in ("record", "report")})


@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_folders(part, pristine, expected, speech_file, tmp_path):
    outcomes, wrong = Counter(), []
    for example in range(part, EXAMPLES, PARTS):
        generator = random.Random(example)
        name = generator.choice(["stock", "sharded", "converted", "converted"])
        (command,) = generator.choices(COMMANDS["converted" if name == "converted" else "stock"], [6, 2, 2])
        room = tmp_path / str(example)
        room.mkdir()
        folder = Path(shutil.copytree(pristine[name], room / "model"))
        done = damage(folder, generator, may_change_weights=name == "converted")
        before = contents(folder)
        result = run(command, folder, room / "target", speech_file)
        try:
            assert contents(folder) == before
            assert "Traceback" not in result.output
            assert result.exit_code in (0, 1), repr(result.exception)
            if result.exit_code == 1:
                assert_one_clear_line(result, folder, command, damaged_files(folder, pristine[name]))
                assert [path.name for path in room.iterdir()] == ["model"]
            else:
                assert_right(result, folder, pristine[name], room / "target", command, expected[name, command])
        except AssertionError as error:
            wrong.append(f"example {example}: {name}, {command}, {done}: {result.output} {error}")
        outcomes[result.exit_code] += 1
        shutil.rmtree(room)
    assert not wrong, "\n".join(wrong)
    # Damage that is never noticed, or folders that never load, would prove nothing.
    assert min(outcomes[0], outcomes[1]) > EXAMPLES // PARTS // 8


def assert_one_clear_line(result, folder: Path, command: str, damaged: set[str]) -> None:
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error:")]
    assert len(lines) == 1
    assert len(lines[0]) < 1000 and result.stdout == ""
    # Generation itself may fail on what a generation config or a processor says that can be read.
    if command != "transcribe" or not damaged & {"generation_config.json", *PROCESSOR_FILES}:
        assert str(folder) in lines[0]
        assert not re.match(r"Error: \w*(Error|Exception)\b", lines[0]), "a class of Python, not a cause"


def assert_right(result, folder: Path, original: Path, target: Path, command: str, expected) -> None:
    """What the undamaged folder gives, but for what damaged configurations and processors say themselves."""
    damaged = damaged_files(folder, original)
    if "generation_config.json" in contents(folder) and command != "inspect":  # which reads config.json alone
        assert isinstance(json.loads(contents(folder)["generation_config.json"]), dict), "defaults in its place"
    fields = changed_fields(folder, original)
    if isinstance(expected, str):
        may_differ = fields or damaged & {"generation_config.json", *PROCESSOR_FILES}
        assert may_differ or printed(result, folder) == expected
        return
    may_differ = set(PROCESSOR_FILES) if damaged & PROCESSOR_FILES else set()
    if fields or "generation_config.json" in damaged:
        may_differ.add("generation_config.json")
    if fields:
        may_differ.add("config.json")
    found = contents(target)
    for name in expected.keys() | found.keys():
        if name == "model.safetensors" and fields & {"dtype", "torch_dtype"}:
            assert shapes(found[name]) == shapes(expected[name])
        elif name not in may_differ and not name.endswith(NOT_COMPARED):
            assert found.get(name) == expected.get(name), name


def shapes(content: bytes) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in load(content).items()}


def damaged_files(folder: Path, original: Path) -> set[str]:
    now, then = contents(folder), contents(original)
    return {name for name in now.keys() | then.keys() if now.get(name) != then.get(name)}


def changed_fields(folder: Path, original: Path) -> set[str]:
    """Fields of config.json that differ."""
    changed, fields = (json.loads((where / "config.json").read_text()) for where in (folder, original))
    names = changed.keys() | fields.keys()
    return {name for name in names if repr(changed.get(name, "absent")) != repr(fields.get(name, "absent"))}
