"""One process of a training run, started by the tests by torchrun, or to be killed. Its one argument is JSON.

`out`: file for losses and weights; `output_dir`; `kill_at`: end the process by SIGKILL at this step; `changes`: of the
arguments of the run.
"""

import json
import os
import signal
import sys

import torch
import transformers
from transformers import TrainerCallback, WhisperFeatureExtractor, WhisperTokenizer

from tests.conftest import ASSETS
from tests.training.conftest import losses, speech, tiny_whisper
from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.training import HealingArguments, HealingTrainer
from whisper_mla.training.checkpoints import last_complete_checkpoint
from whisper_mla.training.collator import SpeechCollator
from whisper_mla.training.labels import LabelMaker


class Kill(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def make_trainer(output_dir: str, kill_at: int | None = None, **changes) -> HealingTrainer:
    """The same run wherever it happens: distillation, with SpecAugment, which draws from NumPy's random state."""
    model = WhisperMLAForConditionalGeneration.from_whisper(tiny_whisper(), kv_rank=8)
    model.config.update({"apply_spec_augment": changes.pop("spec_augment", True)})
    model.freeze_except("decoder_self_attention")
    defaults = {
        "output_dir": output_dir,
        "loss": "distillation",
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "warmup_stable_decay",
        "warmup_steps": 2,
        "lr_scheduler_kwargs": {"num_decay_steps": 3, "decay_type": "1-sqrt"},
        "logging_steps": 1,
        "save_steps": 3,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 1,
    }
    return HealingTrainer(
        model=model,
        args=HealingArguments(**{**defaults, **changes}),
        teacher=tiny_whisper(),
        train_dataset=speech(16),
        data_collator=SpeechCollator(
            WhisperFeatureExtractor(feature_size=8, chunk_length=2),
            LabelMaker(WhisperTokenizer.from_pretrained(ASSETS / "whisper-digits")),
            with_attention_mask=True,
        ),
        callbacks=[Kill(kill_at)] if kill_at else None,
    )


def main(out: str, output_dir: str, kill_at: int | None = None, changes: dict | None = None) -> None:
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    trainer = make_trainer(output_dir, kill_at, **(changes or {}))
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(output_dir))
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        torch.save(
            {"losses": losses(trainer), "weights": dict(weights), "wrapped": str(type(trainer.model_wrapped))}, out
        )


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
    # Gloo's threads may still hold Python's tensors while the interpreter shuts down, which would abort the process.
    os._exit(0)
