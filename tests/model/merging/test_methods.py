"""The merge methods on single tensors, against hand-worked cases and the papers' formulas in fp64."""

import math

import numpy as np
import pytest
import torch

from model.merging.methods import add_task_vectors, linear, slerp
from model.merging.parallel import BLOCK
from model.merging.sparsify import (
    _SAMPLE,
    _order_of_rows,
    keep_at_random,
    keep_between_outliers,
    keep_by_rank,
    keep_largest,
    kth_largest,
    rescaling,
)

PLAIN = {"consensus": False, "normalize": False, "factor": 1.0}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("density", [1e-9, 0.03, 0.2, 0.5, 0.999])
@pytest.mark.parametrize("fast_ties", [False, True])
def test_the_largest_are_kept(dtype, density, fast_ties):
    """So many as asked for, and none smaller than one that is not kept."""
    delta = torch.randn(173, 91, generator=generator()).to(dtype)
    mask = keep_largest(delta.abs(), density, fast_ties)
    assert mask.sum() == max(1, int(density * delta.numel()))
    assert delta[mask].abs().min() >= delta[~mask].abs().max()


def test_of_equal_magnitudes():
    delta = torch.tensor([1.0, -2.0, 2.0, 0.0, 2.0, -3.0])
    assert keep_largest(delta.abs(), 0.5, fast_ties=True).tolist() == [False, True, True, False, False, True]
    many = torch.ones(1000)
    kept = torch.zeros(1000, dtype=torch.bool)
    kept[many.argsort(descending=True)[:300]] = True
    assert torch.equal(keep_largest(many, 0.3), kept)


@pytest.mark.parametrize(
    ("density", "gamma", "kept"), [(0.5, 0.2, range(3, 8)), (0.9, 0.3, range(9)), (0.3, 0.0, range(7, 10)), (0.0, 0.1, [])]
)
def test_outliers_are_dropped(density, gamma, kept):
    order = torch.randperm(10, generator=generator())
    delta = (order + 1.0) * torch.tensor([1, -1] * 5)
    assert sorted(order[keep_between_outliers(delta.abs(), density, gamma)].tolist()) == list(kept)


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
@pytest.mark.parametrize("kind", ["spread", "few values", "the sample misleads"])
def test_the_kth_largest_is_that_of_a_sort(dtype, kind):
    draw = np.random.default_rng(0)
    values = draw.integers(0, {"few values": 9}.get(kind, 32_000), 3_000_001).astype(dtype)
    if kind == "the sample misleads":
        values[:: len(values) // _SAMPLE | 1] = 0
    ordered = np.sort(values)[::-1]
    for k in (1, 2, 65_537, 1_500_000, 2_999_999, 3_000_001):
        limit, surplus = kth_largest(values, k)
        assert limit == ordered[k - 1] and surplus == int((values >= limit).sum()) - k


def test_random_masks_keep_their_share():
    """Within five standard deviations, and DARE rescaled has the expectation of the whole."""
    magnitudes = torch.rand(1000, 1000, generator=generator())
    mask = keep_at_random(magnitudes, 0.3, "seed")
    assert abs(float(mask.float().mean()) - 0.3) < 5 * math.sqrt(0.21 / mask.numel())
    assert float(rescaling(magnitudes.clone(), mask)) == pytest.approx(float(magnitudes.sum() / magnitudes[mask].sum()), rel=1e-5)


def test_no_two_blocks_have_the_same_mask():
    mask = keep_at_random(torch.ones(2 * BLOCK // 64, 64), 0.5, "seed")
    assert not torch.equal(mask[: len(mask) // 2], mask[len(mask) // 2 :])


@pytest.mark.parametrize("fast_ties", [False, True])
def test_rank_decides_the_chance_to_be_kept(fast_ties):
    """DELLA: from density − ε for the smallest of a row to density + ε for its largest, linear in between."""
    row = torch.tensor([0.5, 4.0, 3.0, 1.0, 2.0])
    kept = keep_by_rank(row.expand(200_000, 5), 0.5, 0.2, "seed", fast_ties).float().mean(dim=0)
    torch.testing.assert_close(kept, torch.tensor([0.3, 0.7, 0.6, 0.4, 0.5]), atol=5 * math.sqrt(0.25 / 200_000), rtol=0)


def test_rescaling_keeps_the_l1_norm():
    mask = torch.tensor([False, True, True])
    assert float(rescaling(torch.tensor([1.0, 3.0, 4.0]), mask)) == pytest.approx(8 / 7)
    assert float(rescaling(torch.zeros(3), mask)) == 1 and float(rescaling(torch.ones(3), torch.zeros(3).bool())) == 1


def test_ties_by_hand():
    """Each entry: the sign with the greater sum wins, and the mean is over those that have it; none is left where all are zero."""
    base = torch.tensor([10.0, 10.0, 10.0, 10.0])
    deltas = [torch.tensor([1.0, -4.0, 2.0, 0.0]), torch.tensor([3.0, 1.0, -2.0, 0.0]), torch.tensor([-2.0, -2.0, 0.0, 0.0])]
    merged = add_task_vectors(base, deltas, [1.0, 1.0, 1.0], consensus=True, normalize=True, factor=0.5)
    assert merged.tolist() == [10 + 0.5 * 2, 10 - 0.5 * 3, 10 + 0.5 * 2, 10]  # at 2 against −2 plus wins


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_ranks_are_a_stable_sorts(dtype):
    """Rows with equal magnitudes, zeros, subnormal and very large ones among them."""
    rows = torch.randn(40, 700, generator=generator()).to(dtype).abs()
    rows[:, ::3] = rows[:, 1::3][:, :1]
    rows[:, 5:20] = 0
    rows[:, 20], rows[:, 21] = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal / 2
    for layout in (rows, rows.T):
        assert torch.equal(_order_of_rows(layout), layout.sort(dim=1, stable=True).indices)


def test_where_no_two_are_equal_fast_ties_change_no_mask():
    distinct = torch.randperm(3 * BLOCK, generator=generator()).float().view(-1, 64)
    assert torch.equal(keep_by_rank(distinct, 0.4, 0.3, "seed", fast_ties=True), keep_by_rank(distinct, 0.4, 0.3, "seed"))


def test_addition_negation_and_analogy():
    """C + (A − B) leads from what A has to B onto C (Ilharco et al. 2022)."""
    base, a, b, c = torch.randn(4, 6, 5, dtype=torch.float64, generator=generator())
    deltas = [a - base, b - base, c - base]
    merged = add_task_vectors(base, deltas, [1.0, -1.0, 1.0], **PLAIN)
    torch.testing.assert_close(merged, c + a - b, atol=1e-6, rtol=0)
    torch.testing.assert_close(add_task_vectors(base, [base - a], [-1.0], **PLAIN), a, atol=1e-6, rtol=0)


@pytest.mark.parametrize("consensus", [False, True])
def test_task_vectors_in_fp64(consensus):
    base, *deltas = torch.randn(4, 700, 300, generator=generator())
    weights = [0.7, -0.2, 0.4]
    weighted = torch.stack([delta.double() * weight for delta, weight in zip(deltas, weights, strict=True)])
    agree = weighted.sign() == torch.where(weighted.sum(dim=0) >= 0, 1.0, -1.0) if consensus else torch.ones_like(weighted)
    expected = base + 0.3 * (weighted * agree).sum(dim=0) / (agree * torch.tensor(weights).double()[:, None, None]).sum(dim=0)
    found = add_task_vectors(base, deltas, weights, consensus=consensus, normalize=True, factor=0.3)
    near_zero = (weighted.sum(dim=0).abs() < 1e-6) | (found - base).abs().gt(1e3)
    torch.testing.assert_close(found[~near_zero].double(), expected[~near_zero], atol=1e-4, rtol=1e-5)


def test_float64_is_computed_in_float64():
    """What differs from a plain formula is rounding of 2⁻⁵³, not of 2⁻²⁴."""
    base, a, b = torch.randn(3, 40, 50, dtype=torch.float64, generator=generator())
    expected = base + 0.3 * (0.7 * a - 0.2 * b) / 0.5
    exact = {"atol": 1e-14, "rtol": 1e-14}
    merged = add_task_vectors(base, [a.clone(), b.clone()], [0.7, -0.2], consensus=False, normalize=True, factor=0.3)
    torch.testing.assert_close(merged, expected, **exact)
    torch.testing.assert_close(linear([a, b], [0.7, -0.2], True), (0.7 * a - 0.2 * b) / 0.5, **exact)
    angle = math.acos(float((a * b).sum() / (a.norm() * b.norm())))
    expected = math.sin(0.7 * angle) / math.sin(angle) * a + math.sin(0.3 * angle) / math.sin(angle) * b
    torch.testing.assert_close(slerp(0.3, a, b), expected, **exact)
    assert slerp(0.3, a, b).dtype == torch.float64


def test_linear_is_a_weighted_mean():
    tensors = list(torch.randn(3, 5, 7, generator=generator()))
    expected = (2 * tensors[0].double() - tensors[1] + 3 * tensors[2]) / 4
    torch.testing.assert_close(linear(tensors, [2.0, -1.0, 3.0], True).double(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(linear(tensors, [2.0, -1.0, 3.0], False).double(), expected * 4, atol=1e-6, rtol=0)


def test_slerp_walks_the_arc_evenly():
    """Of two unit vectors at an angle Ω: unit length all the way, at t Ω from the start."""
    start, end = torch.nn.functional.normalize(torch.randn(2, 3000, generator=generator()), dim=1)
    angle = math.acos(float(start @ end))
    for t in (0.0, 0.25, 0.6, 1.0):
        point = slerp(t, start.view(50, 60), end.view(50, 60)).flatten()
        assert float(point.norm()) == pytest.approx(1, abs=1e-6)
        assert math.acos(min(1.0, float(point @ start))) == pytest.approx(t * angle, abs=1e-3)


def test_slerp_of_the_parallel_is_linear():
    start = torch.randn(100, generator=generator())
    torch.testing.assert_close(slerp(0.3, start, 3 * start), 1.6 * start)
    assert torch.equal(slerp(0.3, torch.zeros(4), torch.zeros(4)), torch.zeros(4))
