"""Losses as sums over labels divided by a count, so that parts of a batch add up to the loss of the whole batch.

Padding labels are -100. `num_items` is the number of labels of the whole optimiser step, over accumulation steps and
processes; a mean per part would weight every label of a part with few of them more.
"""

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100


def cross_entropy(logits: Tensor, labels: Tensor, num_items: Tensor | int) -> Tensor:
    """Mean cross-entropy per label.

    Args:
        logits: `[batch, T, vocabulary]`.
        labels: `[batch, T]`, -100 for padding.
        num_items: what the sum is divided by.

    Returns:
        Tensor: a scalar in nats, float32.
    """
    summed = functional.cross_entropy(
        logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return summed / num_items


def distillation_divergence(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, num_items: Tensor | int, temperature: float = 2.0
) -> Tensor:
    """Mean KL(teacher || student) per label at a temperature, times the temperature squared.

    The factor keeps the size of the gradient when the temperature changes (Hinton et al., arXiv 1503.02531); with
    temperature 2 it is the loss of Distil-Whisper (arXiv 2311.00430).

    Args:
        student_logits: `[batch, T, vocabulary]`.
        teacher_logits: the same shape; no gradient flows into it.
        labels: `[batch, T]`; positions with -100 do not count.
        num_items: what the sum is divided by.
        temperature: above 0.

    Returns:
        Tensor: a scalar in nats, float32.
    """
    counts = labels != IGNORED
    student = functional.log_softmax(student_logits[counts].float() / temperature, dim=-1)
    teacher = functional.log_softmax(teacher_logits[counts].detach().float() / temperature, dim=-1)
    summed = functional.kl_div(student, teacher, reduction="sum", log_target=True)
    return summed * temperature**2 / num_items


def relative_error(
    student_states: list[Tensor], teacher_states: list[Tensor], labels: Tensor, num_items: Tensor | int
) -> Tensor:
    """Mean squared error of the student's states relative to the size of the teacher's, per label and layer.

    Args:
        student_states: one `[batch, T, d_model]` per layer.
        teacher_states: the same; no gradient flows into them.
        labels: `[batch, T]`; positions with -100 do not count.
        num_items: what the sum is divided by.

    Returns:
        Tensor: a scalar, float32; 0 for equal states, 1 for a student that returns zeros.
    """
    counts = labels != IGNORED
    errors = []
    for student, teacher in zip(student_states, teacher_states, strict=True):
        wanted = teacher[counts].detach().float()
        squared = (student[counts].float() - wanted).square().sum(-1)
        errors.append((squared / wanted.square().sum(-1).clamp(min=1e-12)).sum())
    return torch.stack(errors).mean() / num_items


__all__ = ["IGNORED", "cross_entropy", "distillation_divergence", "relative_error"]
