"""Closed-form refit of an up projection to the inputs that it will really get."""

import torch
from torch import Tensor

from whisper_mla.conversion.methods.weighted_svd import whitening


def refit(weight: Tensor, down: Tensor, cross: Tensor, covariance: Tensor, *, damping: float = 1e-2) -> Tensor:
    """The up projection that reproduces `weight` on the stock input from the latent of another input, by least squares.

    Where the layers below are converted already, this layer reads `x_new` in place of the stock model's `x`. Given
    `W_D`, the minimiser of `E|W (x - E x) - U W_D (x_new - E x_new)|²` is
    `U = W X W_D^T (W_D C W_D^T)^{-1}` with `X = E[(x - E x)(x_new - E x_new)^T]`, `C` the covariance of `x_new`.
    Damping adds the same white noise to both inputs, so the fit falls back to the weights, not to zero, where there are
    no data. A left weight (`attention`) would change nothing: every row has its own least-squares problem.

    Args:
        weight: `[m, d]`, `W_K` or `W_V`, or any stack of rows.
        down: `[r, d]`, `W_D`.
        cross: `[d, d]`, `X`; `C` itself if the inputs did not change.
        covariance: `[d, d]`, `C`.
        damping: share of the mean variance of `x_new` that is added to `C` and `X`.

    Returns:
        Tensor: `[m, r]`, float64.

    Raises:
        ValueError: `cross` of another shape, or a covariance that cannot be used (see `whitening`).
    """
    if cross.shape != covariance.shape:
        raise ValueError(f"cross has shape {list(cross.shape)}: expected {list(covariance.shape)}, as the covariance.")
    inputs = whitening(covariance, damping)
    noise = damping * covariance.diagonal().to(torch.float64).mean()
    cross = cross.to(inputs.root) + noise * torch.eye(len(cross), dtype=torch.float64, device=inputs.root.device)
    decode = inputs.inverse @ torch.linalg.pinv(down.to(torch.float64) @ inputs.root)  # C^{-1/2} (W_D C^{1/2})^+
    return weight.to(torch.float64) @ (cross @ decode)
