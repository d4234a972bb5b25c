"""Losses against their definitions, and parts of a batch that add up to the whole."""

import pytest
import torch
from torch.nn import functional

from whisper_mla.training.losses import IGNORED, cross_entropy, distillation_divergence, relative_error

pytestmark = pytest.mark.numerics

VOCABULARY = 11


def example(seed: int = 0, batch: int = 4, length: int = 6):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(batch, length, VOCABULARY, generator=generator) for _ in range(2))
    labels = torch.randint(0, VOCABULARY, (batch, length), generator=generator)
    for row in range(batch):
        labels[row, row + 1 :] = IGNORED
    return student, teacher, labels


def test_cross_entropy_is_the_mean_over_labels():
    student, _, labels = example()
    ours = cross_entropy(student, labels, (labels != IGNORED).sum())
    theirs = functional.cross_entropy(student.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_divergence_is_its_definition(temperature):
    student, teacher, labels = example()
    counts = labels != IGNORED
    p, q = (torch.softmax(logits[counts].double() / temperature, -1) for logits in (teacher, student))
    expected = temperature**2 * (p * (p / q).log()).sum(-1).mean()
    ours = distillation_divergence(student, teacher, labels, counts.sum(), temperature)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-6)


def test_equal_logits_have_no_divergence_and_the_teacher_gets_no_gradient():
    student, teacher, labels = example()
    teacher.requires_grad_(True)
    student.requires_grad_(True)
    assert distillation_divergence(teacher, teacher.detach(), labels, 10).abs() < 1e-6
    distillation_divergence(student, teacher, labels, 10).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_relative_error_of_equal_states_and_of_zeros():
    student, teacher, labels = example()
    items = (labels != IGNORED).sum()
    assert relative_error([teacher, student], [teacher, student], labels, items) == 0
    torch.testing.assert_close(relative_error([0 * teacher], [teacher], labels, items), torch.tensor(1.0))
    torch.testing.assert_close(relative_error([3 * teacher, teacher], [teacher] * 2, labels, items), torch.tensor(2.0))


def all_losses(student, teacher, labels, items):
    return torch.stack(
        [
            cross_entropy(student, labels, items),
            distillation_divergence(student, teacher, labels, items),
            relative_error([student], [teacher], labels, items),
        ]
    )


def test_parts_of_a_batch_add_up():
    student, teacher, labels = example()
    items = (labels != IGNORED).sum()
    whole = all_losses(student, teacher, labels, items)
    parts = sum(all_losses(student[rows], teacher[rows], labels[rows], items) for rows in ([0], [1, 2], [3]))
    torch.testing.assert_close(parts, whole)


def test_padding_does_not_count():
    student, teacher, labels = example()
    items = (labels != IGNORED).sum()
    before = all_losses(student, teacher, labels, items)
    student[labels == IGNORED] += 100.0
    teacher[labels == IGNORED] -= 100.0
    torch.testing.assert_close(all_losses(student, teacher, labels, items), before)
