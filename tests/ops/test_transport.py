"""Entropic optimal transport against POT's Python library, recorded plans, and what must hold of any plan."""

from __future__ import annotations

import numpy as np
import ot
import pytest
import torch

from tag2mask.ops.transport import transport_plan


def problem(seed, rows=24, columns=4, even=True):
    """A random cost in [0, 2] with random masses."""
    dice = np.random.default_rng(seed)
    cost = dice.uniform(0, 2, (rows, columns))
    masses = (np.ones(rows), np.ones(columns)) if even else (dice.random(rows) + 0.05, dice.random(columns) + 0.05)
    return (torch.from_numpy(a).float() for a in (cost, masses[0] / masses[0].sum(), masses[1] / masses[1].sum()))


@pytest.mark.parametrize("epsilon", [1.0, 0.1, 0.05])
@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_plan_that_pots_library_finds(seed, epsilon):
    cost, rows, columns = problem(seed, even=seed % 2 == 0)
    plan = transport_plan(cost, rows, columns, epsilon=epsilon, rounds=3000, tolerance=0)
    expected = ot.bregman.sinkhorn_log(
        *(x.double().numpy() for x in (rows, columns, cost)), epsilon, numItermax=3000, stopThr=1e-10, warn=False
    )
    np.testing.assert_allclose(plan, expected, atol=2e-6)
    np.testing.assert_allclose(plan.sum(1), rows, atol=1e-6)
    np.testing.assert_allclose(plan.sum(0), columns, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "epsilon", "rounds"), [("uniform", 0.1, 14), ("nonuniform", 0.1, 10), ("eps0.05", 0.05, 52)]
)
def test_recorded_plans_after_the_recorded_number_of_rounds(pot_cases, name, epsilon, rounds):
    case = {key: torch.from_numpy(pot_cases[f"sinkhorn/{name}_{key}"]) for key in ("K", "u", "v", "T")}
    cost = -epsilon * case["K"].log()
    plan = transport_plan(cost, case["u"], case["v"], epsilon=epsilon, rounds=rounds, tolerance=0)
    np.testing.assert_allclose(plan, case["T"], atol=1e-6)


def test_the_released_rule_stops_where_the_released_code_stops(pot_cases):
    """Recorded: 14 rounds at a tolerance of 1e-2, for two problems that stop together."""
    cost, u, v = (torch.from_numpy(pot_cases[f"sinkhorn/uniform_{key}"]) for key in ("K", "u", "v"))
    cost = -0.1 * cost.log()
    stopped = transport_plan(cost, u, v)
    np.testing.assert_allclose(stopped, transport_plan(cost, u, v, rounds=14, tolerance=0), atol=1e-6)
    assert not torch.allclose(stopped, transport_plan(cost, u, v, rounds=5, tolerance=0), atol=1e-6)


def test_a_problem_does_not_depend_on_its_neighbours():
    easy, hard = [tuple(problem(seed, even=False)) for seed in (0, 1)]
    hard = (hard[0] * 5, *hard[1:])
    both = transport_plan(*(torch.stack(pair) for pair in zip(easy, hard, strict=True)))
    assert torch.equal(both[0], transport_plan(*easy))
    assert torch.equal(both[1], transport_plan(*hard))


def test_a_tiny_epsilon_gives_the_cheapest_plan_and_no_nan():
    """With epsilon near 0 the plan is that of the linear program."""
    cost, rows, columns = problem(5, rows=12, columns=3, even=False)
    plan = transport_plan(cost, rows, columns, epsilon=1e-3, rounds=5000, tolerance=0)
    cheapest = ot.emd2(*(x.double().numpy() for x in (rows, columns, cost)))
    assert torch.isfinite(plan).all()
    assert (plan * cost).sum().item() == pytest.approx(float(cheapest), rel=1e-3)
    assert torch.isfinite(transport_plan(cost * 100, rows, columns, epsilon=1e-3)).all()


def test_what_has_no_mass_gets_none_and_columns_are_exact():
    cost, rows, columns = problem(6, even=False)
    rows, columns = rows.clone(), columns.clone()
    rows[3] = columns[1] = 0
    rows, columns = rows / rows.sum(), columns / columns.sum()
    plan = transport_plan(cost, rows, columns)
    assert not plan[3].any()
    assert not plan[:, 1].any()
    np.testing.assert_allclose(plan.sum(0), columns, atol=1e-6)


def test_one_column_takes_every_row_as_it_is():
    cost, rows, _ = problem(7, even=False)
    np.testing.assert_allclose(transport_plan(cost[:, :1], rows, torch.ones(1))[:, 0], rows, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"rows": torch.full((24,), 2 / 24)}, "different masses"),
        ({"columns": torch.zeros(4)}, "not all zero"),
        ({"columns": torch.tensor([2.0, -1, 0, 0])}, "not negative"),
        ({"cost": torch.full((24, 4), torch.nan)}, "not finite"),
        ({"cost": torch.zeros(4, 24)}, "expected"),
        ({"epsilon": 0.0}, "above 0"),
        ({"rounds": 0}, "above 0"),
    ],
)
def test_what_cannot_be_transported_is_refused(change, match):
    cost, rows, columns = problem(0)
    with pytest.raises(ValueError, match=match):
        transport_plan(**({"cost": cost, "rows": rows, "columns": columns} | change))
