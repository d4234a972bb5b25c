"""What the folders promise: who imports whom, how long a file may be, and that every package is installed."""

import ast
import configparser
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "whisper_mla.configuration": ROOT / "configuration",
    "whisper_mla.conversion": ROOT / "conversion",
    "whisper_mla": ROOT / "modeling_whisper_mla",
}
# Each folder of the converter imports only those before it.
CONVERSION = ["errors", "source", "calibration", "methods", "ranks", "refit", "report"]
# Built on the rest of the package, and on those before it.
ON_TOP = ["evaluation", "bulk", "training", "command_line"]


def modules() -> dict[str, Path]:
    """Module name to file, of the whole package."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


def imported(module: str, path: Path) -> Iterator[str]:
    """Full names of what a file imports from the package, wherever in the file it does."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else None
            base = ".".join(part for part in (above, node.module) if part)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def test_imports_are_found_however_they_are_written(tmp_path):
    file = tmp_path / "module.py"
    file.write_text("import a.b\nfrom . import c\nfrom ..d import e\ndef f():\n    from whisper_mla.g import h\n")
    assert {"a.b", "p.q.c", "p.d.e", "whisper_mla.g.h"} <= set(imported("p.q.module", file))


@pytest.mark.parametrize("folder", CONVERSION[1:])
def test_a_folder_of_the_converter_imports_only_those_before_it(folder):
    allowed = CONVERSION[: CONVERSION.index(folder) + 1]
    files = {name: path for name, path in modules().items() if name.startswith(f"whisper_mla.conversion.{folder}")}
    assert files
    for module, path in files.items():
        for name in imported(module, path):
            if name.startswith("whisper_mla.conversion."):
                assert name.split(".")[2] in allowed, f"{path} imports {name}"


def test_nothing_imports_what_is_built_on_it():
    for module, path in modules().items():
        part = module.split(".")[1] if "." in module else ""
        if part == "__main__":  # the command line by another name
            continue
        above = ON_TOP[ON_TOP.index(part) + 1 :] if part in ON_TOP else ON_TOP
        for name in imported(module, path):
            assert not name.startswith(tuple(f"whisper_mla.{other}" for other in above)), f"{path} imports {name}"


def test_only_the_plug_in_imports_vllm_and_nothing_imports_it():
    for module, path in modules().items():
        names = list(imported(module, path))
        if not module.startswith("whisper_mla.vllm_plugin"):
            assert not any(re.match(r"vllm\b|whisper_mla\.vllm_plugin\b", name) for name in names), path


def test_the_configuration_needs_nothing_else():
    for module, path in modules().items():
        if module.startswith("whisper_mla.configuration"):
            for name in imported(module, path):
                assert not name.startswith("whisper_mla") or name.startswith("whisper_mla.configuration"), (path, name)


def test_every_package_on_disk_is_installed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    on_disk = {
        name: str(path.parent.relative_to(ROOT)) for name, path in modules().items() if path.name == "__init__.py"
    }
    listed = setup["options"]["package_dir"].strip().splitlines()
    assert {line.split(" = ")[0]: line.split(" = ")[1] for line in listed} == on_disk
    assert set(setup["options"]["packages"].split()) == set(on_disk)


@pytest.mark.parametrize("folder", PACKAGES.values(), ids=PACKAGES)
def test_no_file_is_long(folder):
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in folder.rglob("*.py")}
    assert {path: length for path, length in lengths.items() if length > 300} == {}
    assert len((ROOT / "conversion" / "from_whisper.py").read_text(encoding="utf-8").splitlines()) < 120
