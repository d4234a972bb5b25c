"""Ways to damage a checkpoint folder, each a function of the folder and a random number generator."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

# What a field of config.json or generation_config.json is replaced by.
ODD_VALUES: list[Any] = [
    None, True, False, 0, 1, 2, 3, 7, -1, -8, 2.5, -0.5, 10**9, 10**30, float("nan"), float("inf"), "", "abc", "8",
    [], [1], [8, 8], [8, 8, 8], ["a"], {}, {"a": 1}, "float16", "float33", "gelu", "relu", "eager", "nonsense",
]  # fmt: skip


def damage(folder: Path, generator: random.Random, may_change_weights: bool) -> str:
    """Damage `folder` in one random way.

    Args:
        folder: of a checkpoint; changed in place.
        generator: decides everything.
        may_change_weights: also change values of weights so that the file remains well formed.

    Returns:
        str: what was done, in words.
    """
    ways = [flip, flip, flip, truncate, extend, remove, empty, swap, garbage, folder_instead, field, field, field]
    ways += [drop_field, add_field, rename_tensor, drop_tensor, reshape_tensor, retype_tensor, not_finite]
    if may_change_weights:
        ways += [flip_weights, flip_weights, zero_weights, exchange_tensors]
    way = generator.choice(ways)
    return f"{way.__name__}: {way(folder, generator)}"


def choose(folder: Path, generator: random.Random, pattern: str = "*") -> Path:
    """A random file; the model's own files come up more often than code and processor."""
    files = sorted(path for path in folder.glob(pattern) if path.is_file())
    weights = [8 if path.name.startswith(("config", "model", "conversion", "generation")) else 1 for path in files]
    return generator.choices(files, weights)[0]


def header_length(path: Path) -> int:
    """Bytes of a safetensors file before its data; of any other file, all of them."""
    content = path.read_bytes()
    return 8 + int.from_bytes(content[:8], "little") if path.suffix == ".safetensors" else len(content)


def change_bytes(path: Path, generator: random.Random, start: int, stop: int) -> str:
    content = bytearray(path.read_bytes())
    positions = [generator.randrange(start, stop) for _ in range(generator.choice([1, 1, 2, 8]))]
    for position in positions:
        content[position] ^= 1 << generator.randrange(8)
    path.write_bytes(content)
    return f"{path.name} at {positions}"


def flip(folder: Path, generator: random.Random) -> str:
    """Bits of any file but of the values in weights."""
    path = choose(folder, generator)
    return change_bytes(path, generator, 0, header_length(path))


def flip_weights(folder: Path, generator: random.Random) -> str:
    path = choose(folder, generator, "*.safetensors")
    return change_bytes(path, generator, header_length(path), path.stat().st_size)


def zero_weights(folder: Path, generator: random.Random) -> str:
    """A block that a file system did not write."""
    path = choose(folder, generator, "*.safetensors")
    content = bytearray(path.read_bytes())
    start = generator.randrange(header_length(path), len(content) - 512)
    content[start : start + 512] = bytes(512)
    path.write_bytes(content)
    return f"{path.name} from {start}"


def truncate(folder: Path, generator: random.Random) -> str:
    path = choose(folder, generator)
    length = generator.randrange(path.stat().st_size)
    path.write_bytes(path.read_bytes()[:length])
    return f"{path.name} to {length}"


def extend(folder: Path, generator: random.Random) -> str:
    path = choose(folder, generator)
    path.write_bytes(path.read_bytes() + generator.randbytes(generator.choice([1, 8, 100])))
    return path.name


def remove(folder: Path, generator: random.Random) -> str:
    path = choose(folder, generator)
    path.unlink()
    return path.name


def empty(folder: Path, generator: random.Random) -> str:
    path = choose(folder, generator)
    path.write_bytes(b"")
    return path.name


def swap(folder: Path, generator: random.Random) -> str:
    a, b = choose(folder, generator), choose(folder, generator)
    content_of_a, content_of_b = a.read_bytes(), b.read_bytes()
    a.write_bytes(content_of_b)
    b.write_bytes(content_of_a)
    return f"{a.name} and {b.name}"


def garbage(folder: Path, generator: random.Random) -> str:
    path = choose(folder, generator)
    content = generator.choice([b"{}", b"[]", b"null", b'"text"', b"[" * 100_000, generator.randbytes(200)])
    path.write_bytes(content)
    return f"{path.name} is {content[:20]!r}"


def folder_instead(folder: Path, generator: random.Random) -> str:
    path = choose(folder, generator)
    path.unlink()
    path.mkdir()
    return path.name


def edit_json(path: Path, edit) -> str:
    fields = json.loads(path.read_text())
    said = edit(fields)
    path.write_text(json.dumps(fields))
    return f"{path.name} {said}"


def field(folder: Path, generator: random.Random) -> str:
    def edit(fields: dict):
        name, value = generator.choice(sorted(fields)), generator.choice(ODD_VALUES)
        fields[name] = value
        return f"{name}={value!r}"

    return edit_json(folder / "config.json", edit)


def drop_field(folder: Path, generator: random.Random) -> str:
    def edit(fields: dict):
        name = generator.choice(sorted(fields))
        del fields[name]
        return f"without {name}"

    return edit_json(folder / "config.json", edit)


def add_field(folder: Path, generator: random.Random) -> str:
    names = ["kv_ranks", "torch_dtype", "quantization_config", "layer_types", "num_hidden_layers", "__class__", "x y"]

    def edit(fields: dict):
        name, value = generator.choice(names), generator.choice(ODD_VALUES)
        fields[name] = value
        return f"with {name}={value!r}"

    return edit_json(folder / "config.json", edit)


def edit_tensors(folder: Path, generator: random.Random, edit) -> str:
    path = choose(folder, generator, "*.safetensors")
    tensors = load_file(path)
    said = edit(tensors, generator.choice(sorted(tensors)))
    save_file(tensors, path, metadata={"format": "pt"})
    return f"{path.name} {said}"


def rename_tensor(folder: Path, generator: random.Random) -> str:
    def edit(tensors: dict, name: str):
        tensors[name.replace("e", "f", 1)] = tensors.pop(name)
        return name

    return edit_tensors(folder, generator, edit)


def drop_tensor(folder: Path, generator: random.Random) -> str:
    def edit(tensors: dict, name: str):
        del tensors[name]
        return name

    return edit_tensors(folder, generator, edit)


def reshape_tensor(folder: Path, generator: random.Random) -> str:
    def edit(tensors: dict, name: str):
        tensors[name] = tensors[name].flatten()[:-1].clone() if generator.random() < 0.5 else tensors[name][None]
        return name

    return edit_tensors(folder, generator, edit)


def retype_tensor(folder: Path, generator: random.Random) -> str:
    """The same bytes as integers, which `from_pretrained` would convert by value."""

    def edit(tensors: dict, name: str):
        tensors[name] = tensors[name].view(torch.int32)
        return name

    return edit_tensors(folder, generator, edit)


def not_finite(folder: Path, generator: random.Random) -> str:
    def edit(tensors: dict, name: str):
        tensors[name].view(-1)[generator.randrange(tensors[name].numel())] = generator.choice(
            [float("nan"), float("inf"), -float("inf")]
        )
        return name

    return edit_tensors(folder, generator, edit)


def exchange_tensors(folder: Path, generator: random.Random) -> str:
    """Two tensors of one shape, each under the other's name."""

    def edit(tensors: dict, name: str):
        same = [other for other in sorted(tensors) if other != name and tensors[other].shape == tensors[name].shape]
        if not same:
            del tensors[name]
            return name
        other = generator.choice(same)
        tensors[name], tensors[other] = tensors[other], tensors[name]
        if torch.equal(tensors[name], tensors[other]):
            del tensors[name]
        return f"{name}, {other}"

    return edit_tensors(folder, generator, edit)
