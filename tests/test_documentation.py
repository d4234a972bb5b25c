"""What the public names say of themselves: arguments, shapes, errors."""

import ast
import importlib
import inspect
import re
import textwrap

import pytest

PACKAGES = [
    "whisper_mla",
    "whisper_mla.configuration",
    "whisper_mla.conversion",
    "whisper_mla.conversion.methods",
    "whisper_mla.training",
]


def public_callables() -> dict[str, object]:
    """Every class and function in `__all__` of the packages, and the methods that a class itself defines, by name."""
    found: dict[str, object] = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            thing = getattr(module, name)
            if not inspect.isroutine(thing) and not inspect.isclass(thing):
                continue
            found[f"{package}.{name}"] = thing
            if inspect.isclass(thing) and thing.__module__.startswith("whisper_mla"):
                for method, function in vars(thing).items():
                    function = getattr(function, "__func__", function)
                    ours = inspect.isfunction(function) and function.__module__.startswith("whisper_mla")
                    if ours and not method.startswith("_"):
                        found[f"{package}.{name}.{method}"] = function
    return found


PUBLIC = public_callables()


def section(doc: str, *titles: str) -> str:
    """The indented text below `Args:` or the like."""
    found = re.search(rf"^({'|'.join(titles)}):\n((?:[ \t]+.*\n?|\n)*)", doc, flags=re.MULTILINE)
    return found[2] if found else ""


def takes_over(doc: str) -> bool:
    """Whether a docstring refers to another one for what it does not say: "As `X`", or "…; see [`X`]"."""
    return bool(re.match(r"As \[?`", doc) or re.search(r"; see \[`", doc))


def raised(thing: object) -> set[str]:
    """Names of the exceptions that the body of a function (of a class: its constructor's checks) raises itself."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(thing)))
    top = tree.body[0]
    bodies = [top]
    if isinstance(top, ast.ClassDef):
        bodies = [node for node in top.body if getattr(node, "name", "") in ("__init__", "__post_init__")]
    calls = [node.exc for body in bodies for node in ast.walk(body) if isinstance(node, ast.Raise) and node.exc]
    return {call.func.id for call in calls if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)}


def complaints(name: str, thing: object) -> list[str]:
    """What is missing in the documentation of one class or function."""
    doc = inspect.cleandoc(thing.__doc__ or "")
    if not doc:
        return ["no docstring"]
    missing = []
    is_error = inspect.isclass(thing) and issubclass(thing, Exception)
    parameters = {} if is_error else inspect.signature(thing).parameters
    extends = inspect.isclass(thing) and any(base.__module__.startswith("transformers") for base in thing.__mro__)
    if extends:  # what the Transformers class takes is documented there
        inherited = set(inspect.signature(thing.__mro__[1].__init__).parameters) | {
            "config",
            "model",
            "inputs",
            "args",
            "kwargs",
        }
        parameters = {key: value for key, value in parameters.items() if key not in inherited}
    described = section(doc, "Args", "Attributes")
    for parameter in parameters.values():
        if parameter.name in ("self", "cls") or parameter.name.startswith("_"):
            continue
        if not re.search(rf"\b{parameter.name}\b", described) and not takes_over(doc):
            missing.append(f"argument {parameter.name}")
        annotation = str(parameter.annotation)
        if annotation in ("Tensor", "<class 'torch.Tensor'>") and not re.search(
            rf"\b{parameter.name}\b[^\n]*(\n[^\n]*)?`\[", doc
        ):
            missing.append(f"shape of {parameter.name}")
    if inspect.isfunction(thing):
        returned = str(inspect.signature(thing).return_annotation)
        if returned in ("Tensor", "<class 'torch.Tensor'>") and "`[" not in doc:
            missing.append("shape of the result")
        if "Returns:" in doc and not section(doc, "Returns").strip():
            missing.append("what is returned")
    for error in sorted(raised(thing)):
        if error not in section(doc, "Raises") and not error.startswith("_"):
            missing.append(f"raises {error}")
    return missing


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_documented_in_full(name):
    assert complaints(name, PUBLIC[name]) == []


def test_what_is_missing_is_found():
    def bad(first, second: "Tensor") -> "Tensor":  # noqa: F821
        """Something.

        Args:
            second: a matrix.
        """
        raise ValueError(first)

    assert complaints("bad", bad) == ["argument first", "shape of second", "shape of the result", "raises ValueError"]
    assert complaints("bad", lambda x: x) == ["no docstring"]
    assert len(PUBLIC) > 40
