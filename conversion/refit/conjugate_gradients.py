"""Solve a large symmetric system of which only the product with a vector is known."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def conjugate_gradients(
    matrix: Callable[[Tensor], Tensor],
    preconditioner: Callable[[Tensor], Tensor],
    right: Tensor,
    steps: Iterable[int],
    tolerance: float = 1e-3,
) -> Tensor:
    """Minimise `½ x^T M x - right^T x`, from `x = 0`; it falls with every step.

    Preconditioned conjugate gradients (Hestenes and Stiefel, 1952). Stopped early, directions that `M` hardly knows of
    stay as they are. A product that is not finite, or shows `M` not to be positive definite, ends it with what was
    found before.

    Args:
        matrix: `M v` of a vector; symmetric and positive definite.
        preconditioner: `P v`, with `P` near the inverse of `M`; symmetric and positive definite.
        right: `[n]`.
        steps: one turn for each, such as `range(50)` or a progress bar of it.
        tolerance: stop once the residual, in the norm of `P`, is this share of `right`.

    Returns:
        Tensor: `x`, `[n]`.
    """
    solution, residual = torch.zeros_like(right), right
    direction = preconditioned = preconditioner(residual)
    size = start = residual @ preconditioned
    for _ in steps:
        if not size > tolerance**2 * start:  # also where it is not a number
            break
        image = matrix(direction)
        curvature = direction @ image
        if not 0 < curvature < float("inf"):
            break
        length = size / curvature
        solution, residual = solution + length * direction, residual - length * image
        preconditioned = preconditioner(residual)
        last, size = size, residual @ preconditioned
        direction = preconditioned + size / last * direction
    return solution


__all__ = ["conjugate_gradients"]
