"""What a healing run can be told, beside the arguments of Transformers' trainer."""

from dataclasses import dataclass, field

from transformers import Seq2SeqTrainingArguments


@dataclass
class HealingArguments(Seq2SeqTrainingArguments):
    """[`Seq2SeqTrainingArguments`] plus what is minimised.

    The schedule of the paper's code (warm-up, constant, 1 - sqrt decay) is Transformers' own:
    `lr_scheduler_type="warmup_stable_decay"`, `warmup_steps=900`,
    `lr_scheduler_kwargs={"num_decay_steps": 1800, "decay_type": "1-sqrt"}`.

    Args:
        loss: "cross_entropy", or "distillation" from a teacher, weighted as below.
        cross_entropy_weight: of the cross-entropy in a distillation (Distil-Whisper's default).
        divergence_weight: of KL(teacher || student) at `temperature`, times its square.
        temperature: above 0.
        hidden_state_weight: of the relative squared error of the decoder layers' outputs.
        attention_output_weight: of the relative squared error of the outputs of decoder self- and cross-attention.
        early_stopping_patience: stop after so many evaluations without a better word error rate; None: never.

    Raises:
        ValueError: an unknown loss, a negative weight, a temperature that is not positive, label smoothing, or a
            schedule whose phases are longer than the run.
    """

    loss: str = field(default="cross_entropy", metadata={"help": "cross_entropy or distillation"})
    cross_entropy_weight: float = field(default=0.8, metadata={"help": "of the cross-entropy in a distillation"})
    divergence_weight: float = field(default=1.0, metadata={"help": "of KL(teacher || student), times temperature^2"})
    temperature: float = field(default=2.0, metadata={"help": "at which teacher and student are compared"})
    hidden_state_weight: float = field(default=0.0, metadata={"help": "of the error of decoder layers' outputs"})
    attention_output_weight: float = field(default=0.0, metadata={"help": "of the error of attention outputs"})

    early_stopping_patience: int | None = field(default=None, metadata={"help": "evaluations without improvement"})

    def __post_init__(self):
        super().__post_init__()
        # The examples reach the collator whole: it reads audio, text and language.
        self.remove_unused_columns = False
        self.label_names = ["labels"]
        if self.loss not in ("cross_entropy", "distillation"):
            raise ValueError(f"loss={self.loss!r}: expected 'cross_entropy' or 'distillation'.")
        for name in ("cross_entropy_weight", "divergence_weight", "hidden_state_weight", "attention_output_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected 0 or more.")
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature}: expected a number above 0.")
        if self.label_smoothing_factor:
            raise ValueError(f"label_smoothing_factor={self.label_smoothing_factor}: not supported; leave it at 0.")
        self._check_schedule()

    def _check_schedule(self):
        """Transformers would silently never reach the decay."""
        kwargs = self.lr_scheduler_kwargs if isinstance(self.lr_scheduler_kwargs, dict) else {}
        if self.max_steps <= 0:
            return
        phases = self.get_warmup_steps(self.max_steps) + int(kwargs.get("num_decay_steps", 0))
        if phases > self.max_steps:
            raise ValueError(
                f"max_steps={self.max_steps}: shorter than warm-up and decay together ({phases} steps). Reduce "
                "warmup_steps and num_decay_steps in lr_scheduler_kwargs."
            )
