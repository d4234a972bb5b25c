"""Checkpoint folders that carry the model's code: loaded without the package, they transcribe the same."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from transformers import AutoConfig, AutoModelForSpeechSeq2Seq, AutoProcessor, pipeline

from whisper_mla import WhisperMLAForConditionalGeneration, quantize_weights
from whisper_mla.hub.remote_code import SOURCE_FILES, flatten_imports
from whisper_mla.version import __version__

# Runs where `import whisper_mla` fails: loads both folders, transcribes, saves again and loads that too.
WITHOUT_PACKAGE = """
import json, sys
sys.modules["whisper_mla"] = None
import soundfile, transformers
from transformers import AutoModel, AutoModelForSpeechSeq2Seq, AutoProcessor, pipeline

transformers.logging.set_verbosity_error()
clip, output, *folders = sys.argv[1:]
samples = soundfile.read(clip, dtype="float32")[0]
found = {}
for folder in folders:
    speech = pipeline("automatic-speech-recognition", model=folder, trust_remote_code=True)
    texts = [speech(samples.copy(), return_timestamps=times) for times in (False, True, "word")]
    model = AutoModelForSpeechSeq2Seq.from_pretrained(folder, trust_remote_code=True)
    model.save_pretrained(folder + "-again")
    AutoProcessor.from_pretrained(folder, trust_remote_code=True).save_pretrained(folder + "-again")
    again = pipeline("automatic-speech-recognition", model=folder + "-again", trust_remote_code=True)
    model.save_pretrained(folder + "-bare", include_code=False)
    try:
        model.to_whisper()
    except ImportError as error:
        refusal = str(error)
    found[folder] = {
        "texts": texts,
        "again": again(samples.copy()),
        "module": type(model).__module__.split(".")[0],
        "base": type(AutoModel.from_pretrained(folder, trust_remote_code=True)).__name__,
        "record": model.conversion_record,
        "cache": model.cache_nbytes(positions=10),
        "refusal": refusal,
    }
json.dump(found, open(output, "w"))
"""


@pytest.fixture(scope="module")
def folders(digits, processor, tmp_path_factory) -> list[Path]:
    """An exact and a low-rank, rounded checkpoint (latents and weights), with processor and code."""
    found = []
    for name, ranks in {"exact": {}, "low-rank": {"kv_rank": 64, "cross_kv_rank": 96, "latent_dtype": "int8"}}.items():
        folder = tmp_path_factory.mktemp("checkpoints") / name
        model = WhisperMLAForConditionalGeneration.from_whisper(digits, **ranks)
        (quantize_weights(model) if ranks else model).save_pretrained(folder)
        processor.save_pretrained(folder)
        found.append(folder)
    return found


@pytest.fixture(scope="module")
def without_package(folders, clips, tmp_path_factory) -> dict:
    scratch = tmp_path_factory.mktemp("without")
    (scratch / "run.py").write_text(WITHOUT_PACKAGE)
    command = [sys.executable, scratch / "run.py", clips["clip07"]["path"], scratch / "out.json", *folders]
    environment = {**os.environ, "HF_MODULES_CACHE": str(scratch / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(list(map(str, command)), env=environment, cwd=scratch, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((scratch / "out.json").read_text())


@pytest.mark.processes
def test_same_transcripts_without_the_package(folders, without_package, clips):
    samples = soundfile.read(clips["clip07"]["path"], dtype="float32")[0]
    for folder in folders:
        found = without_package[str(folder)]
        speech = pipeline("automatic-speech-recognition", model=str(folder))
        expected = [speech(samples.copy(), return_timestamps=times) for times in (False, True, "word")]
        assert found["texts"] == json.loads(json.dumps(expected))
        assert expected[0]["text"].strip() == clips["clip07"]["text"]
        assert len(expected[2]["chunks"]) == len(clips["clip07"]["text"].split())
        assert found["module"] == "transformers_modules"
        assert found["base"] == "WhisperMLAModel"
        assert found["cache"] == speech.model.cache_nbytes(positions=10)


@pytest.mark.processes
def test_saved_again_without_the_package(folders, without_package):
    for folder in folders:
        found = without_package[str(folder)]
        assert found["again"] == found["texts"][0]
        assert "pip install whisper-mla" in found["refusal"]
        again = Path(f"{folder}-again")
        for name in SOURCE_FILES:
            assert (again / name).read_text() == (folder / name).read_text()
        assert found["record"] == json.loads((folder / "conversion.json").read_text())
        assert json.loads((again / "conversion.json").read_text()) == found["record"]
        bare = {path.name for path in Path(f"{folder}-bare").iterdir()}
        assert not bare & set(SOURCE_FILES)
        assert "auto_map" not in json.loads((Path(f"{folder}-bare") / "config.json").read_text())


def test_the_installed_package_needs_no_flag_and_wins(folders):
    for trust in (None, True):
        model = AutoModelForSpeechSeq2Seq.from_pretrained(folders[0], trust_remote_code=trust)
        assert type(model) is WhisperMLAForConditionalGeneration
    assert type(AutoConfig.from_pretrained(folders[0])).__module__.startswith("whisper_mla.")
    assert type(AutoProcessor.from_pretrained(folders[0])).__name__ == "WhisperProcessor"


def test_the_code_is_whole_and_says_what_it_is(folders):
    """Every relative import has its file, nothing imports the package, and every file has the header."""
    for name in SOURCE_FILES:
        text = (folders[0] / name).read_text()
        assert text.startswith(f"# whisper-mla {__version__}. Licence: Apache-2.0")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("whisper_mla")
                if node.level:
                    assert node.level == 1 and f"{node.module}.py" in SOURCE_FILES
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith("whisper_mla") for alias in node.names)


def test_flatten_imports():
    text = "from .a.b.c import d\nfrom .e import f\n    from .g.h import i\nimport torch\n"
    assert flatten_imports(text) == "from .c import d\nfrom .e import f\n    from .h import i\nimport torch\n"


def test_code_can_be_left_out_and_is_removed_again(exact, tmp_path):
    exact.save_pretrained(tmp_path / "with")
    assert set(SOURCE_FILES) <= {path.name for path in (tmp_path / "with").iterdir()}
    fields = json.loads((tmp_path / "with" / "config.json").read_text())
    assert fields["auto_map"]["AutoModelForSpeechSeq2Seq"].endswith("WhisperMLAForConditionalGeneration")
    exact.save_pretrained(tmp_path / "with", include_code=False)
    assert not set(SOURCE_FILES) & {path.name for path in (tmp_path / "with").iterdir()}
    assert "auto_map" not in json.loads((tmp_path / "with" / "config.json").read_text())
    assert getattr(exact.config, "auto_map", None) is None
    AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "with")
