"""A vocabulary projection in 8 bits: the largest logits are those of float32, for any weights."""

import pytest
import torch

from whisper_mla import int8_linear
from whisper_mla.rounded_projection import RoundedProjection, greedy_logits

pytestmark = pytest.mark.numerics

FORBIDDEN = torch.tensor([0, 3, 7, 250, 899])
FIRST_EXACT = 900


def operands(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights `[1000, 64]` and states `[5, 64]`, float32."""
    generator = torch.Generator().manual_seed(len(kind))
    weight = torch.randn(1000, 64, generator=generator)
    states = torch.randn(5, 64, generator=generator)
    if kind == "one dimension is large":  # as in whisper-base: 150 beside 5
        states[:, 9] = 300
        weight[:, 9] *= 0.01
    elif kind == "a forbidden token is the largest":
        weight[FORBIDDEN] = 3 * states
    elif kind == "equal but for little":  # by less than rounding
        weight = weight[:1] + 1e-3 * weight
    elif kind == "rows of different sizes":
        weight *= torch.logspace(-3, 1, 1000)[torch.randperm(1000, generator=generator), None]
    return weight, states


KINDS = [
    "normal",
    "one dimension is large",
    "a forbidden token is the largest",
    "equal but for little",
    "rows of different sizes",
]


@pytest.fixture(params=[128, 64], ids=["8-bit states", "7-bit states"], autouse=True)
def zero_point(request, monkeypatch):
    """Both kinds of processors, on one that has what either needs."""
    here = int8_linear.pack_weight(*int8_linear.quantize_rows(torch.ones(64, 64))).zero_point
    if request.param > here:
        pytest.skip("without VNNI there are 7 bits only")
    monkeypatch.setattr(int8_linear, "zero_point", lambda kernel: request.param)


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_stays_within_its_margins(kind):
    weight, states = operands(kind)
    projection = RoundedProjection(weight)
    logits, norms, left = projection.rough_logits(states)
    off = (logits - states.double() @ weight.double().T).abs()
    margin = norms[:, None] * projection.errors + left[:, None] * projection.norms
    assert (off <= margin).all()
    assert off.max() > 0.02 * margin.max()  # so the margins are not beyond all measure
    assert projection.largest_error == projection.errors.max() and projection.largest_norm == projection.norms.max()


@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_logits_are_exact(kind):
    weight, states = operands(kind)
    projection = RoundedProjection(weight)
    found = greedy_logits(states[:, None], weight, FORBIDDEN, projection.number, FIRST_EXACT)[:, 0]
    expected = states @ weight.T
    tolerance = 1e-5 * states.norm(dim=1, keepdim=True) * weight.norm(dim=1)
    exact = (found - expected).abs() <= tolerance
    assert exact[:, FIRST_EXACT:].all()
    best, token = expected[:, :FIRST_EXACT].index_fill(1, FORBIDDEN, -torch.inf).max(dim=1)
    assert torch.equal(found[:, :FIRST_EXACT].index_fill(1, FORBIDDEN, -torch.inf).argmax(dim=1), token)
    is_larger = expected[:, :FIRST_EXACT] >= best[:, None]
    assert exact[:, :FIRST_EXACT][is_larger].all()
    assert (
        found[:, :FIRST_EXACT][~is_larger] <= best.repeat_interleave((~is_larger).sum(dim=1)) + 1e-4 * tolerance.max()
    ).all()
    if kind == "a forbidden token is the largest":
        assert is_larger.sum() > len(states)
    if kind == "normal":
        assert exact[:, :FIRST_EXACT].float().mean() < 0.2  # the rest is as the 8 bits left it


def test_where_nothing_stands_out_all_are_exact():
    """Margins are wider than the differences: one product with the whole matrix is less work."""
    weight, states = operands("equal but for little")
    projection = RoundedProjection(weight)
    found = greedy_logits(states, weight, FORBIDDEN, projection.number, FIRST_EXACT)
    assert torch.equal(found, states @ weight.T)


def test_many_states_take_one_product():
    weight, _ = operands("normal")
    states = torch.randn(40, 64, generator=torch.Generator().manual_seed(1))
    number = RoundedProjection(weight).number
    with pytest.raises(KeyError):  # nobody has kept it
        greedy_logits(states, weight, FORBIDDEN, number, FIRST_EXACT)
    projection = RoundedProjection(weight)
    found = greedy_logits(states, weight, FORBIDDEN, projection.number, FIRST_EXACT)
    assert torch.equal(found, states @ weight.T)


def test_states_that_are_zero_or_no_number():
    weight, states = operands("normal")
    projection = RoundedProjection(weight)
    states[0], states[1, 5] = 0, torch.nan
    found = greedy_logits(states, weight, FORBIDDEN, projection.number, FIRST_EXACT)
    assert (found[0] == 0).all()
    assert found[1].isnan().all()
    assert torch.equal(found[2:].argmax(dim=1), (states @ weight.T)[2:].argmax(dim=1))
