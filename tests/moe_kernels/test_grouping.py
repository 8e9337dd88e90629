"""The grouping's own metadata: a stable order, its inverse, and offsets that are the histogram's running sum."""

import pytest
import torch

from moe_kernels import backend
from moe_kernels.grouping import group_tokens

needs_cpp = pytest.mark.skipif(bool(backend.extension_problem()), reason=backend.extension_problem() or "built")


@pytest.fixture(autouse=True, params=["reference", pytest.param("cpp", marks=needs_cpp)])
def implementation(request):
    """Every test here runs on each implementation of the CPU."""
    with backend.use(request.param):
        yield request.param


@pytest.mark.parametrize(("tokens", "top_k", "num_experts"), [(0, 2, 4), (1, 1, 1), (1, 2, 4), (37, 2, 4), (50, 8, 64), (9, 3, 3)])
def test_order_inverse_and_offsets(tokens, top_k, num_experts):
    generator = torch.Generator().manual_seed(tokens)
    experts = torch.rand(tokens, num_experts, generator=generator).argsort(dim=1)[:, :top_k]
    grouping = group_tokens(experts, num_experts)
    pairs = experts.flatten().tolist()
    assert grouping.order_N.tolist() == sorted(range(len(pairs)), key=lambda n: (pairs[n], n))
    assert grouping.order_N[grouping.inverse_N].tolist() == list(range(len(pairs)))
    assert grouping.offsets_E1.tolist() == [sum(pair < e for pair in pairs) for e in range(num_experts + 1)]
    assert grouping.offsets_E1[-1] == tokens * top_k


def test_all_tokens_to_one_expert():
    grouping = group_tokens(torch.full((5, 1), 2), 4)
    assert grouping.offsets_E1.tolist() == [0, 0, 0, 5, 5]
    assert grouping.order_N.tolist() == [0, 1, 2, 3, 4]
