"""The paired test against every flip there is, and its rate of false alarms; Holm's correction by hand."""

from itertools import product

import numpy as np
import pytest

from eval.significance import holm, paired_test


def problems(values: list[float]) -> dict[str, float]:
    return {f"p{index}": value for index, value in enumerate(values)}


@pytest.mark.parametrize("values", [[0.1, 0.1, 0.1], [0.3, -0.1, 0.2, 0.05], [0.2, 0.1, -0.4, 0.3, 0.3, 0.25, -0.1, 0.15, 0.0], [0.0, 0.0]])
def test_it_is_the_share_of_all_flips(values: list[float]) -> None:
    sums = [abs(sum(sign * value for sign, value in zip(signs, values, strict=True))) for signs in product((1, -1), repeat=len(values))]
    exact = sum(found >= abs(sum(values)) - 1e-12 for found in sums) / len(sums)
    assert paired_test(problems(values), "seed") == pytest.approx(exact, abs=0.02)  # four standard errors of 10,000 flips


def test_false_alarms_are_as_frequent_as_they_should_be() -> None:
    rng = np.random.default_rng(0)
    found = [paired_test(problems(rng.exponential(size=15) * rng.choice((-1, 1), 15)), str(trial)) for trial in range(300)]
    assert 0.02 < np.mean([p is not None and p < 0.05 for p in found]) < 0.09


def test_a_large_difference_has_the_least_p_and_a_single_problem_none() -> None:
    assert paired_test(problems([1.0] * 40), "seed") == pytest.approx(1 / 10_001)
    assert paired_test({"only": 3.0}, "seed") is None


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
