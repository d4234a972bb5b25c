"""Transformers' own model tests, taken from the source distribution of the installed version.

The wheel has no tests. The source distribution has the common ones (`tests/test_modeling_common.py`,
`tests/test_configuration_common.py`), but neither `tests/generation` nor `tests/models`.
"""

import importlib
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import types
import warnings
from pathlib import Path

import transformers

# The name under which the fetched folder is imported: "tests" is the name of ours.
PACKAGE = "transformers_common_tests"

# What the common tests import and the source distribution lacks. Tests that are not there cannot run; they are named
# here, so that what is left out can be read.
ABSENT = {
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    # Fields that every configuration accepts, with values that are not their defaults.
    "utils.test_configuration_utils": {
        "config_common_kwargs": {
            "output_hidden_states": True,
            "output_attentions": True,
            "return_dict": False,
            "architectures": ["Whisper"],
            "id2label": {0: "speech", 1: "music", 2: "silence"},
            "dtype": "float16",
        }
    },
}


class NotAvailable(Exception):
    """The source distribution cannot be had, most likely because the package index cannot be reached."""


def fetch(cache: Path) -> Path:
    """The folder of the common tests of the installed Transformers.

    Fetched once for each version with pip, from whatever index pip is configured for, and moved into the cache by a
    rename, so that a run that is cut short or two at once leave nothing half there.

    Args:
        cache: a folder that outlives the run.

    Raises:
        NotAvailable: pip could not fetch it.
    """
    version = transformers.__version__
    folder = cache / f"transformers-{version}-tests"
    if folder.is_dir():
        return folder
    with tempfile.TemporaryDirectory(dir=cache, prefix="partial-") as scratch:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        download += ["--retries", "1", "--no-binary", "transformers", "--dest", scratch, f"transformers=={version}"]
        done = subprocess.run(download, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip download failed"]
            raise NotAvailable(reason[-1])
        (archive,) = Path(scratch).glob("*.tar.gz")
        with tarfile.open(archive) as contents:
            prefix = archive.name.removesuffix(".tar.gz") + "/tests/"
            wanted = [member for member in contents.getmembers() if member.name.startswith(prefix)]
            contents.extractall(scratch, wanted, filter="data")
        (Path(scratch) / prefix / "__init__.py").touch()  # one of the common tests executes it
        try:
            os.rename(Path(scratch) / prefix, folder)
        except OSError:
            if not folder.is_dir():  # otherwise another run was faster
                raise
    return folder


def markers(folder: Path) -> set[str]:
    """Names of the pytest markers that the fetched tests use, by themselves or by Transformers' decorators."""
    files = [*folder.glob("*.py"), Path(transformers.__file__).with_name("testing_utils.py")]
    texts = (path.read_text(encoding="utf-8") for path in files)
    return {name for text in texts for name in re.findall(r"\bmark\.(\w+)", text)}


def load(folder: Path) -> types.SimpleNamespace:
    """Import the common tests.

    Args:
        folder: what `fetch` returned.

    Returns:
        types.SimpleNamespace: `ModelTesterMixin`, `ConfigTester`, and `modeling`, the module of the former.
    """
    if PACKAGE not in sys.modules:
        package = types.ModuleType(PACKAGE)
        package.__path__ = [str(folder)]
        sys.modules[PACKAGE] = package
        for name, content in ABSENT.items():
            parent, _, _ = name.partition(".")
            sys.modules.setdefault(f"{PACKAGE}.{parent}", types.ModuleType(f"{PACKAGE}.{parent}")).__path__ = []
            module = sys.modules[f"{PACKAGE}.{name}"] = types.ModuleType(f"{PACKAGE}.{name}")
            vars(module).update(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        modeling = importlib.import_module(f"{PACKAGE}.test_modeling_common")
        configuration = importlib.import_module(f"{PACKAGE}.test_configuration_common")
    return types.SimpleNamespace(
        modeling=modeling, ModelTesterMixin=modeling.ModelTesterMixin, ConfigTester=configuration.ConfigTester
    )
