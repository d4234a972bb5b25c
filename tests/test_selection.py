"""What runs by default, what runs as a stage of its own, and that nothing is left out without a reason."""

import ast
import configparser
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETTINGS = configparser.ConfigParser()
SETTINGS.read(ROOT / "setup.cfg")
OPTIONS = SETTINGS["tool:pytest"]
MARKERS = [line.partition(":")[0] for line in OPTIONS["markers"].strip().splitlines()]
APART = re.findall(r"not (\w+)", OPTIONS["addopts"])
FILES = sorted((ROOT / "tests").rglob("*.py"))
# Position of the reason among the arguments.
REASONS = {"skip": 0, "skipif": None, "xfail": None, "importorskip": None}


def without_reason(tree: ast.AST) -> Iterator[int]:
    """Lines that skip, or expect a failure, and do not say why."""
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Attribute) and node.attr in REASONS):
            continue
        if ast.unparse(node.value) not in ("pytest", "pytest.mark"):
            continue
        call = called.get(id(node))
        position = REASONS[node.attr]
        words = {word.arg: ast.unparse(word.value) for word in call.keywords} if call else {}
        said = words.get("reason", words.get("msg", "''")) not in ("''", "None")
        if not said and not (call and position is not None and len(call.args) > position):
            yield node.lineno


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("pytest.skip()", [1]),
        ("pytest.skip('it rains')", []),
        ("@pytest.mark.skip\ndef test(): ...", [1]),
        ("@pytest.mark.skip(reason='it rains')\ndef test(): ...", []),
        ("@pytest.mark.skipif(True)\ndef test(): ...", [1]),
        ("@pytest.mark.skipif(True, reason='')\ndef test(): ...", [1]),
        ("@pytest.mark.skipif(True, reason='it rains')\ndef test(): ...", []),
        ("@pytest.mark.xfail\ndef test(): ...", [1]),
        ("x = pytest.importorskip('x')", [1]),
    ],
)
def test_a_skip_without_a_reason_is_seen(source, lines):
    assert list(without_reason(ast.parse(source))) == lines


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_skip_has_a_reason(path):
    assert list(without_reason(ast.parse(path.read_text(encoding="utf-8")))) == []


def test_stages_are_markers_that_are_used():
    """Each is left out by default, marks tests, and has its command in CONTRIBUTING.md and its place in CI."""
    assert APART and set(APART) < set(MARKERS)
    marked = "\n".join(path.read_text(encoding="utf-8") for path in FILES)
    assert set(re.findall(r"pytest\.mark\.(\w+)", marked)) <= {*MARKERS, "parametrize", "usefixtures", *REASONS}
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    # vLLM needs an environment of its own, and so a script.
    ci = (ROOT / ".ci" / "run").read_text() + (ROOT / ".ci" / "vllm").read_text()
    for name in MARKERS:
        assert f"pytest.mark.{name}" in marked
        assert f"-m {name}`" in contributing
        assert re.search(rf"(stage_of|pytest -q -m) {name}\b", ci)


def test_the_core_runs_by_default():
    """Equality with stock Whisper in every mode of `generate` is not a stage apart."""
    for name in ("test_generation.py", "test_latent_attention.py", "test_model.py"):
        text = (ROOT / "tests" / "modeling" / name).read_text(encoding="utf-8")
        assert not [mark for mark in APART if f"pytest.mark.{mark}" in text]
