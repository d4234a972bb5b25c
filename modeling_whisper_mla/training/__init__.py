"""Heal: train a converted model's attention, by cross-entropy or by distillation from the model it came from."""

from .arguments import HealingArguments
from .healing_trainer import HealingTrainer

__all__ = ["HealingArguments", "HealingTrainer"]
