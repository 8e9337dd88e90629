"""Intervals: against the normal theory they should meet, by problem and not by row, and paired where a difference is stated."""

import numpy as np
import pytest

from eval.bootstrap import FEW, Estimate, average, difference, ratio, wilson
from eval.bootstrap import bootstrap as bootstrap_strata


def bootstrap(scores: dict[str, list[float]], groups: list[str], seed: str) -> dict[str, Estimate]:
    """Of a single stratum."""
    return bootstrap_strata({"cpp": (groups, scores)}, seed)["cpp"]


def test_the_interval_meets_normal_theory() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.1, size=400)
    row = bootstrap({"a": values.tolist()}, [str(i) for i in range(400)], "x")["a"].as_dict()
    half = 1.96 * values.std() / 20
    assert row["value"] == pytest.approx(values.mean())
    assert row["low"] == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert row["high"] == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_repeating_every_row_of_a_problem_does_not_narrow_the_interval() -> None:
    values = np.random.default_rng(1).normal(0.5, 0.1, size=40).tolist()
    groups = [str(i) for i in range(40)]
    once = bootstrap({"a": values}, groups, "x")["a"].as_dict()
    ten_times = bootstrap({"a": values * 10}, groups * 10, "x")["a"].as_dict()
    assert ten_times == pytest.approx(once)


def test_a_constant_difference_has_no_spread_though_the_means_have() -> None:
    values = [0.1, 0.5, 0.3, 0.9]
    systems = bootstrap({"base": values, "expert": [value + 0.05 for value in values]}, list("abcd"), "x")
    row = difference(systems["expert"], systems["base"]).as_dict()
    assert (row["low"], row["high"]) == pytest.approx((0.05, 0.05))
    base = systems["base"].as_dict()
    assert base["high"] - base["low"] > 0.2


def test_ratio_and_average_by_hand() -> None:
    a, b = Estimate(0.6, np.array([0.5, 0.7]), 40), Estimate(0.3, np.array([0.25, 0.35]), 40)
    assert ratio(a, b).as_dict() == pytest.approx({"value": 2.0, "low": 2.0, "high": 2.0})
    mean = average([a, b])
    assert mean.value == pytest.approx(0.45)
    assert mean.draws is not None
    assert mean.draws.tolist() == pytest.approx([0.375, 0.525])


def test_no_interval_where_none_makes_sense() -> None:
    single = bootstrap({"a": [0.2, 0.4]}, ["g", "g"], "x")["a"]
    assert single.as_dict() == {"value": pytest.approx(0.3), "low": None, "high": None}
    zero = Estimate(0.0, np.zeros(2), 40)
    assert ratio(Estimate(0.5, np.full(2, 0.5), 40), zero).as_dict() == {"value": None, "low": None, "high": None}
    assert ratio(single, single).as_dict() == {"value": 1.0, "low": None, "high": None}


def test_the_draws_depend_on_the_seed_alone() -> None:
    values, groups = [0.1, 0.2, 0.9], list("abc")
    assert bootstrap({"a": values}, groups, "x")["a"].as_dict() == bootstrap({"b": values}, groups, "x")["b"].as_dict()
    first, second = (bootstrap({"a": values}, groups, seed)["a"].draws for seed in ("x", "y"))
    assert first is not None
    assert second is not None
    assert (first != second).any()


def test_a_problem_is_drawn_in_all_languages_at_once() -> None:
    values, groups = [0.1, 0.2, 0.6, 0.9], list("abcd")
    same = bootstrap_strata({"cpp": (groups, {"s": values}), "java": (groups, {"s": values})}, "x")
    one, both = same["cpp"]["s"].as_dict(), average([same["cpp"]["s"], same["java"]["s"]]).as_dict()
    assert both == pytest.approx(one)  # two versions of the same four problems tell no more than one


def test_draws_without_a_language_s_problems_are_left_out() -> None:
    strata = {"cpp": (list("abcdefgh"), {"s": [0.5] * 8}), "java": (list("ab"), {"s": [0.25, 0.25]})}
    estimates = bootstrap_strata(strata, "x")
    assert np.isnan(estimates["java"]["s"].draws).any()
    few = {"few": True}
    assert estimates["java"]["s"].as_dict() == pytest.approx({"value": 0.25, "low": 0.25, "high": 0.25, **few})
    assert ratio(estimates["java"]["s"], estimates["cpp"]["s"]).as_dict() == pytest.approx({"value": 0.5, "low": 0.5, "high": 0.5, **few})


@pytest.mark.parametrize(
    ("passed", "n", "low", "high"), [(0, 10, 0, 0.2775), (5, 10, 0.2366, 0.7634), (1, 20, 0.0089, 0.2361), (0, 1, 0, 0.7935)]
)
def test_wilson_s_interval_is_the_published_one(passed: int, n: int, low: float, high: float) -> None:
    """As tables and R's prop.test(correct = FALSE) give it; both its ends solve (p - passed / n)^2 = z^2 p (1 - p) / n."""
    assert wilson(passed, n) == pytest.approx((low, high), abs=1e-4)
    assert wilson(n - passed, n) == pytest.approx((1 - high, 1 - low), abs=1e-4)
    for end in wilson(passed, n):
        assert (end - passed / n) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / n, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_none_and_all_are_not_certain(value: float) -> None:
    row = bootstrap({"a": [value] * 12}, list("abcdef") * 2, "x")["a"].as_dict()
    assert (row["low"], row["high"]) == pytest.approx(wilson(6 * value, 6))  # problems count, not rows


def test_a_mean_of_1_of_other_values_is_drawn() -> None:
    """Wilson's interval would say [0.44, 1]."""
    values = [0.5, 1.5, 1.0]
    row = bootstrap({"a": values}, list("abc"), "x")["a"].as_dict()
    assert (row["low"], row["value"], row["high"]) == (0.5, 1.0, 1.5)
    strata = {lang: (list("abc"), {"s": [value] * 3}) for lang, value in (("cpp", 0.5), ("java", 1.5))}
    row = average([stratum["s"] for stratum in bootstrap_strata(strata, "x").values()]).as_dict()
    assert (row["low"], row["value"], row["high"]) == (1.0, 1.0, 1.0)
    ones = bootstrap_strata({lang: (list("abc"), {"s": [1.0] * 3}) for lang in ("cpp", "java")}, "x")
    row = average([stratum["s"] for stratum in ones.values()]).as_dict()
    assert (row["low"], row["high"]) == pytest.approx(wilson(3, 3))
    none_and_all = {"cpp": (list("abc"), {"s": [0.0] * 3}), "java": (list("abc"), {"s": [1.0] * 3})}
    assert average([stratum["s"] for stratum in bootstrap_strata(none_and_all, "x").values()]).as_dict()["value"] == 0.5


@pytest.mark.parametrize(("of", "to"), [(0.0, 0.0), (1.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
def test_what_is_made_of_such_means_is_not_certain_either(of: float, to: float) -> None:
    systems = bootstrap({"of": [of] * 6, "to": [to] * 6, "some": [0.2, 0.4, 0.6, 0.2, 0.4, 0.6]}, list("abcdef"), "x")
    row = difference(systems["of"], systems["to"]).as_dict()
    assert (row["value"], row["low"], row["high"]) == (of - to, None, None)
    assert ratio(systems["of"], systems["to"]).as_dict()["low"] is None
    assert (ratio(systems["of"], systems["some"]).as_dict()["low"] is None) == (of == 0)
    assert difference(systems["of"], systems["some"]).as_dict()["low"] is not None
    row = average([systems["of"], systems["to"]]).as_dict()
    assert (row["low"] is None) == (of != to)


def test_intervals_of_few_problems_are_marked_and_too_narrow() -> None:
    """Whether they hold the mean, 0, of normal values, in 300 samples: at 95 % at most 273 of 300 at 5 problems, at least 274 at 60."""
    held = {}
    for problems in (5, 60):
        values = np.random.default_rng(problems).normal(size=(300, problems))
        names = [str(place) for place in range(problems)]
        means = bootstrap({str(number): row.tolist() for number, row in enumerate(values)}, names, "x")
        rows = [estimate.as_dict() for estimate in means.values()]
        held[problems] = sum(row["low"] <= 0 <= row["high"] for row in rows)
        assert {row.get("few", False) for row in rows} == {problems < FEW}
        assert difference(means["0"], means["1"]).as_dict().get("few", False) == (problems < FEW)
    assert held[5] <= 273 < held[60]
    assert "few" not in bootstrap({"a": [1.0] * 5}, list("abcde"), "x")["a"].as_dict(), "Wilson's interval is right at any number"
