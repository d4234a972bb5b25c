"""Where to go on after a kill, and the final model, whole or not at all."""

import json
import os
from pathlib import Path
from typing import cast

from torch import nn
from transformers import ProcessorMixin, Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from whisper_mla.freezing import trainable_parameters
from whisper_mla.hub.checkpoint_folder import written_aside


def last_complete_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """The newest checkpoint of a trainer that was written to its end.

    Trainer writes `trainer_state.json` last, so a checkpoint during which the run was killed has none, or a torn one;
    it is passed over, and written anew when the run gets there again.

    Returns:
        str: a folder, or None.
    """
    found = []
    for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        try:
            state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
            found.append((int(state["global_step"]), str(folder)))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return max(found)[1] if found else None


def save_final(trainer: Trainer, processor: ProcessorMixin, target: str | os.PathLike) -> None:
    """Save the trained model with its processor as a checkpoint folder that `from_pretrained` loads.

    Adapters are merged. The conversion record gets an entry `healing`: its other entries, errors and quality, are those
    right after conversion. All processes must call it; the first one writes.

    Raises:
        ConversionError: the folder exists and holds anything but a checkpoint, or cannot be written.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    healing = _describe_healing(trainer)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
        weights = model.state_dict()
    else:
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if getattr(model, "conversion_record", None) is not None:
        model.conversion_record = {**model.conversion_record, "healing": healing}
    if trainer.is_world_process_zero():
        with written_aside(target, overwrite=True) as folder:
            model.save_pretrained(folder, state_dict=weights)
            processor.save_pretrained(folder)
    trainer.accelerator.wait_for_everyone()


def _describe_healing(trainer: Trainer) -> dict:
    args, names = trainer.args, trainable_parameters(cast(nn.Module, trainer.model)).names
    return {
        "loss": getattr(args, "loss", None),
        "steps": trainer.state.global_step,
        "best_step": trainer.state.best_global_step,
        "batch_size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "learning_rate": args.learning_rate,
        "seed": args.seed,
        "trained_tensors": list(names),
    }
