"""A recipe: everything that decides a healing run, from a YAML file and the command line."""

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml
from transformers import HfArgumentParser

from .arguments import HealingArguments


@dataclass
class ModelArguments:
    """What is trained.

    Args:
        model: a stock or converted checkpoint, Hub id or folder.
        revision: branch, tag or commit of it.
        conversion: arguments of `from_whisper`; `{}` for an exact conversion; None: train `model` as it is.
        teacher: for distillation and for `label_source: teacher`; None: `model`, if it is converted here.
        train_only: parts for `freeze_except`, with commas between, or "all".
        adapter: arguments of PEFT's `LoraConfig` (`{r: 16, use_dora: true}`) for the latent projections; then nothing
            else trains, whatever `train_only`, and the adapters are merged into the final model.
        dtype: of the weights. Trained weights need float32 (with `bf16: true` for speed); with adapters bfloat16 will
            do.
        spec_augment: fields of the configuration: `mask_time_prob`, `mask_time_length`, `mask_time_min_masks`,
            `mask_feature_prob`, …; None: as the checkpoint says.
    """

    model: str = field(default="", metadata={"help": "stock or converted checkpoint"})
    revision: str | None = field(default=None, metadata={"help": "branch, tag or commit of the model"})
    conversion: dict | str | None = field(default=None, metadata={"help": "arguments of from_whisper, as JSON"})
    teacher: str | None = field(default=None, metadata={"help": "stock checkpoint; default: the model converted here"})
    train_only: str = field(default="decoder_self_attention", metadata={"help": "parts that train, or all"})
    adapter: dict | str | None = field(default=None, metadata={"help": "arguments of LoraConfig, as JSON"})
    dtype: str = field(default="float32", metadata={"help": "of the weights: float32 or bfloat16"})
    spec_augment: dict | str | None = field(default=None, metadata={"help": "fields of the configuration, as JSON"})

    def __post_init__(self):
        _read_json(self, "conversion", "adapter", "spec_augment")
        if not self.model:
            raise ValueError("model: which checkpoint? Give a Hub id or a folder.")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype={self.dtype!r}: expected 'float32' or 'bfloat16'.")
        if self.dtype != "float32" and not self.adapter:
            raise ValueError(f"dtype={self.dtype!r}: only with an adapter; else use float32 weights and bf16: true.")


@dataclass
class DataArguments:
    """What is heard.

    Args:
        train: datasets (see `load_speech`), or `{digit_takes: folder, size: number, seed: number}`. A `$NAME` in a path
            is that environment variable.
        evaluation: the same, for the word error rate; together one set.
        probabilities: of drawing from each training set; None: equal.
        label_source: "transcripts", or "teacher": its greedy transcripts, made once and kept on disk.
        transcripts_dir: where those are kept; None: in `output_dir`. Runs with the same teacher and data can share it.
        task: "transcribe" or "translate".
        lowercase: write transcripts in lower case.
        normalizer: of the word error rate: "auto", "english", "basic" or "none".
        long_audio: "drop" or "error".
        empty_text: "error" or "drop".
        shuffle_buffer: examples among which a stream is shuffled.
        check_processes: processes that look at the corpus before the first step.
    """

    train: dict | str | None = field(default=None, metadata={"help": "list of datasets, as JSON"})
    evaluation: dict | str | None = field(default=None, metadata={"help": "list of datasets, as JSON"})
    probabilities: dict | str | None = field(default=None, metadata={"help": "list of numbers, as JSON"})
    label_source: str = field(default="transcripts", metadata={"help": "transcripts or teacher"})
    transcripts_dir: str | None = field(default=None, metadata={"help": "of the teacher; default: in output_dir"})
    task: str = field(default="transcribe", metadata={"help": "transcribe or translate"})
    lowercase: bool = field(default=False, metadata={"help": "transcripts in lower case"})
    normalizer: str = field(default="auto", metadata={"help": "of the word error rate"})
    long_audio: str = field(default="drop", metadata={"help": "drop or error"})
    empty_text: str = field(default="error", metadata={"help": "error or drop"})
    shuffle_buffer: int = field(default=1000, metadata={"help": "examples among which a stream is shuffled"})
    check_processes: int | None = field(default=None, metadata={"help": "processes that look at the corpus"})

    def __post_init__(self):
        _read_json(self, "train", "evaluation", "probabilities")
        for name in ("train", "evaluation"):
            value = getattr(self, name)
            value = [value] if isinstance(value, dict) else value or []
            if not isinstance(value, list) or not all(isinstance(source, dict) for source in value):
                raise ValueError(f"{name}={value!r}: expected a list of datasets, each a mapping with 'path'.")
            setattr(self, name, [_expand(source) for source in value])
        if not self.train:
            raise ValueError("train: no dataset. Give a list of mappings with 'path'.")
        if self.label_source not in ("transcripts", "teacher"):
            raise ValueError(f"label_source={self.label_source!r}: expected 'transcripts' or 'teacher'.")


Recipe = tuple[ModelArguments, DataArguments, HealingArguments]


def parse_recipe(arguments: Sequence[str] | None = None) -> Recipe:
    """A recipe from a command line: optionally a YAML file first, then `--name value` for what it shall not say.

    Args:
        arguments: those of the command line; None: of this process.

    Raises:
        ValueError: no such file, a name that no argument has, or a value that none can have.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = HfArgumentParser((ModelArguments, DataArguments, HealingArguments))  # type: ignore[arg-type]
    if arguments and not arguments[0].startswith("-"):
        path = Path(arguments.pop(0))
        parser.set_defaults(**_read_yaml(path, {action.dest for action in parser._actions}))
    return cast(Recipe, parser.parse_args_into_dataclasses(arguments, look_for_args_file=False))


def _read_yaml(path: Path, known: set[str]) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: not a recipe that can be read ({str(error).splitlines()[0]}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a recipe; expected lines of 'name: value'.")
    unknown = sorted(set(content) - known)
    if unknown:
        raise ValueError(f"{path}: unknown argument {', '.join(map(str, unknown))}.")
    return content


# What can change between a run and its continuation without changing what is learnt.
_OPERATIONAL = {
    "accelerator_config",
    "check_processes",
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "ddp_backend",
    "deepspeed",
    "disable_tqdm",
    "eval_on_start",
    "eval_steps",
    "eval_strategy",
    "fsdp",
    "fsdp_config",
    "gradient_accumulation_steps",
    "hub_model_id",
    "hub_token",
    "local_rank",
    "log_level",
    "log_on_each_node",
    "logging_dir",
    "logging_first_step",
    "logging_steps",
    "logging_strategy",
    "output_dir",
    "per_device_eval_batch_size",
    "per_device_train_batch_size",
    "push_to_hub",
    "report_to",
    "resume_from_checkpoint",
    "run_name",
    "save_steps",
    "save_strategy",
    "save_total_limit",
    "transcripts_dir",
    "use_cpu",
}


def check_same_recipe(recipe: Recipe, output_dir: str | os.PathLike) -> None:
    """Raise if a run with another recipe was begun in `output_dir`, see `remember_recipe`.

    Raises:
        ValueError: names what differs.
    """
    path, fields = Path(output_dir) / "recipe.json", _recipe_fields(recipe)
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = sorted(name for name in {*before, *fields} if before.get(name) != fields.get(name))
        if changed:
            raise ValueError(
                f"{output_dir}: holds a run with another recipe (different: {', '.join(changed)}). Choose another "
                "output_dir, or remove this one."
            )


def remember_recipe(recipe: Recipe, output_dir: str | os.PathLike) -> None:
    """Write `output_dir/recipe.json`, once the recipe is known to work: a run begins here."""
    if recipe[2].process_index == 0:
        path = Path(output_dir) / "recipe.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".partial")
        aside.write_text(json.dumps(_recipe_fields(recipe), indent=1) + "\n", encoding="utf-8")
        aside.replace(path)


def _recipe_fields(recipe: Recipe) -> dict[str, Any]:
    fields = {name: value for part in recipe for name, value in _as_json(part).items() if name not in _OPERATIONAL}
    args = recipe[2]
    fields["batch_size"] = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return fields


def _as_json(part) -> dict[str, Any]:
    values = part.to_dict() if isinstance(part, HealingArguments) else dataclasses.asdict(part)
    return json.loads(json.dumps(values, default=str))


def _read_json(arguments, *names: str) -> None:
    """What the command line gives as text."""
    for name in names:
        value = getattr(arguments, name)
        if isinstance(value, str):
            try:
                setattr(arguments, name, json.loads(value))
            except ValueError as error:
                raise ValueError(f"{name}={value!r}: not JSON ({error}).") from error


def _expand(source: dict[str, Any]) -> dict[str, Any]:
    expanded = {key: os.path.expandvars(value) if isinstance(value, str) else value for key, value in source.items()}
    unset = [value for key, value in expanded.items() if key in ("path", "digit_takes") and "$" in str(value)]
    if unset:
        raise ValueError(f"{unset[0]}: this environment variable is not set. Set it to the folder of the data.")
    return expanded


__all__ = ["DataArguments", "ModelArguments", "Recipe", "check_same_recipe", "parse_recipe", "remember_recipe"]
