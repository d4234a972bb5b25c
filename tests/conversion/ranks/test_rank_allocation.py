import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from whisper_mla.conversion.ranks.rank_allocation import (
    Choice,
    allowed_ranks,
    error_by_rank,
    greedy_ranks,
    rescaled,
    smallest_ranks,
    total_cost,
    uniform_ranks,
)


def choice_of(gains: list[float], cost: int, minimum: int, maximum: int, multiple: int) -> Choice:
    """A latent whose spectrum is `gains`: a convex error curve."""
    energies = torch.tensor(sorted(gains, reverse=True), dtype=torch.float64)
    errors = torch.cat([energies.flip(0).cumsum(0).flip(0), energies.new_zeros(1)])
    return Choice(errors, cost, minimum, maximum, multiple)


COSTS = st.integers(1, 9)


@st.composite
def all_choices(draw, costs=COSTS, bounded=True):
    width, multiple = draw(st.sampled_from([(6, 1), (6, 2), (7, 2), (9, 4), (12, 4)]))
    ranks = [*range(multiple, width, multiple), width]
    minimum = draw(st.sampled_from(ranks)) if bounded else 1
    maximum = draw(st.sampled_from([rank for rank in ranks if rank >= minimum])) if bounded else width
    gains = st.lists(st.floats(1e-6, 100), min_size=width, max_size=width)
    return [choice_of(draw(gains), draw(costs), minimum, maximum, multiple) for _ in range(draw(st.integers(1, 3)))]


def total_error(choices, ranks) -> float:
    return sum(choice.errors[rank].item() for choice, rank in zip(choices, ranks, strict=True))


def all_within(choices, budget):
    every = itertools.product(*(choice.ranks for choice in choices))
    return [ranks for ranks in every if total_cost(choices, ranks) <= budget]


@given(choices=all_choices(), share=st.floats(0, 1.2))
def test_budget_bounds_and_multiples_are_respected(choices, share):
    low = total_cost(choices, smallest_ranks(choices))
    high = total_cost(choices, [choice.ranks[-1] for choice in choices])
    budget = int(low + share * (high - low))
    for allocate in (uniform_ranks, greedy_ranks):
        ranks = allocate(choices, budget)
        assert total_cost(choices, ranks) <= budget
        for choice, rank in zip(choices, ranks, strict=True):
            assert choice.minimum <= rank <= choice.maximum
            assert rank % choice.multiple == 0 or rank == len(choice.errors) - 1
        if budget >= high:
            assert ranks == [choice.ranks[-1] for choice in choices]
        one_more = [
            [*ranks[:i], next(r for r in choice.ranks if r > rank), *ranks[i + 1 :]]
            for i, (choice, rank) in enumerate(zip(choices, ranks, strict=True))
            if rank < choice.ranks[-1]
        ]
        if allocate is greedy_ranks:  # nothing that is left over could still be spent
            assert all(total_cost(choices, more) > budget for more in one_more)
        else:
            assert len(set(ranks)) == 1
            assert not one_more or total_cost(choices, [more[i] for i, more in enumerate(one_more)]) > budget


@given(
    choices=all_choices(costs=st.just(3)).filter(lambda c: (len(c[0].errors) - 1) % c[0].multiple == 0), data=st.data()
)
def test_greedy_is_optimal_where_steps_cost_the_same(choices, data):
    low = total_cost(choices, smallest_ranks(choices))
    budget = data.draw(st.integers(low, total_cost(choices, [choice.ranks[-1] for choice in choices])))
    best = min(total_error(choices, ranks) for ranks in all_within(choices, budget))
    assert total_error(choices, greedy_ranks(choices, budget)) == pytest.approx(best, rel=1e-9, abs=1e-9)


@given(choices=all_choices(bounded=False), data=st.data())
def test_greedy_is_optimal_for_what_it_spends_until_a_step_does_not_fit(choices, data):
    steps = []
    for choice in choices:
        for rank, following in itertools.pairwise(choice.ranks):
            price = choice.cost * (following - rank)
            steps.append(((choice.errors[rank] - choice.errors[following]).item() / price, price))
    steps.sort(key=lambda step: -step[0])
    taken = data.draw(st.integers(0, len(steps)))
    budget = total_cost(choices, smallest_ranks(choices)) + sum(price for _, price in steps[:taken])
    best = min(total_error(choices, ranks) for ranks in all_within(choices, budget))
    assert total_error(choices, greedy_ranks(choices, budget)) == pytest.approx(best, rel=1e-9, abs=1e-9)


def test_greedy_spends_where_it_counts_per_byte():
    dear, cheap = choice_of([8, 4, 2, 1], 4, 1, 4, 1), choice_of([5, 3, 2, 1], 1, 1, 4, 1)
    assert greedy_ranks([dear, cheap], 5) == [1, 1]
    assert greedy_ranks([dear, cheap], 9) == [1, 4]  # three cheap steps, 1 left
    assert greedy_ranks([dear, cheap], 12) == [2, 4]
    assert uniform_ranks([dear, cheap], 12) == [2, 2]


def test_uniform_is_held_back_by_the_bounds_of_each():
    narrow, wide = choice_of([3, 2, 1, 1], 1, 1, 2, 1), choice_of([3, 2, 1, 1], 1, 3, 4, 1)
    assert uniform_ranks([narrow, wide], 4) == [1, 3]
    assert uniform_ranks([narrow, wide], 100) == [2, 4]


@pytest.mark.parametrize("allocate", [uniform_ranks, greedy_ranks])
def test_a_budget_that_cannot_be_met_names_the_smallest_possible(allocate):
    choices = [choice_of([1] * 8, 100, 4, 8, 4), choice_of([1] * 8, 1000, 4, 8, 4)]
    assert allocate(choices, 4400) == [4, 4]
    with pytest.raises(ValueError, match=r"4,399 bytes cannot be met: the smallest ranks need 4,400 bytes"):
        allocate(choices, 4399)


def test_allowed_ranks():
    assert allowed_ranks(20, 1, 20, 8) == [8, 16, 20]
    assert allowed_ranks(16, 5, 15, 4) == [8, 12]
    assert allowed_ranks(16, 1, 16, 100) == [16]
    with pytest.raises(ValueError, match="rank_multiple=16 lies between min_rank=17 and max_rank=31"):
        allowed_ranks(256, 17, 31, 16)


@pytest.mark.parametrize("width", [3, 5])
def test_errors_are_tails_of_squared_singular_values(width):
    errors = error_by_rank(torch.tensor([3.0, 2.0, 1.0]), width)
    assert errors.tolist() == [14.0, 5.0, 1.0] + [0.0] * (width - 2)


def test_errors_of_a_latent_that_counts_for_more():
    """The scale of one latent's errors moves ranks to it, and nothing else of the choice changes."""
    even = [choice_of([4.0, 2.0, 1.0, 0.5], 1, 1, 4, 1)] * 2
    assert greedy_ranks(even, 4) == [2, 2]
    louder = rescaled(even[1], 3.9)
    assert greedy_ranks([even[0], louder], 4) == [1, 3]
    assert (louder.cost, louder.ranks) == (even[1].cost, even[1].ranks)
    assert torch.equal(louder.errors, even[1].errors * 3.9)
