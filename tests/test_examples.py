"""The short examples, as functions. `finetune.py` has tests of its own in `training/`."""

import importlib.util
from pathlib import Path

import pytest
import soundfile
import typer

from whisper_mla.conversion import from_whisper

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_transcribe_in_batches(digits, processor, digits_folder, clips, tmp_path, capsys):
    """Files longer than the window are named and left out; stock Whisper is refused."""
    model, recordings = tmp_path / "model", tmp_path / "recordings"
    from_whisper(digits).save_pretrained(model)
    processor.save_pretrained(model)
    recordings.mkdir()
    for name in ("clip00", "clip01", "long"):
        soundfile.write(recordings / f"{name}.wav", clips[name]["samples"], 16_000)
    example = load("transcribe_in_batches")
    example.main(str(model), recordings, batch_size=1)
    shown = capsys.readouterr()
    assert [line for line in shown.out.splitlines() if line.startswith("clip")] == [
        f"{name}.wav: {clips[name]['text']}" for name in ("clip00", "clip01")
    ]
    assert shown.out.count("LatentCache") == 2
    assert "long.wav: left out, longer than 10 s" in shown.err
    with pytest.raises(typer.BadParameter, match="a stock Whisper has no latent cache"):
        example.main(str(digits_folder), recordings)
