"""The grouping kernels: the metadata's own properties, and equality with the reference bit for bit."""

import pytest
import torch

from moe_kernels import backend, grouping
from moe_kernels.grouping import group_tokens, group_tokens_reference
from moe_kernels.launch import Launch

pytestmark = pytest.mark.skipif(bool(backend.triton_problem()), reason=backend.triton_problem() or "Triton runs")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def draw(tokens, top_k, num_experts):
    generator = torch.Generator().manual_seed(tokens + num_experts)
    return torch.rand(tokens, num_experts, generator=generator).argsort(dim=1)[:, :top_k].to(DEVICE)


def check(experts, num_experts):
    with backend.use("triton"):
        result = group_tokens(experts, num_experts)
    pairs = experts.flatten().tolist()
    assert result.order_N.tolist() == sorted(range(len(pairs)), key=lambda n: (pairs[n], n))
    assert result.order_N[result.inverse_N].tolist() == list(range(len(pairs)))
    assert result.offsets_E1.diff().tolist() == [pairs.count(e) for e in range(num_experts)]
    assert result.offsets_E1[0] == 0
    assert result.offsets_E1[-1] == len(pairs)
    for actual, expected in zip(vars(result).values(), group_tokens_reference(experts, num_experts), strict=True):
        assert actual.dtype == torch.int64
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("block", [16, 32, 4096])
@pytest.mark.parametrize("tokens", [0, 1, 2, 17, 70])
@pytest.mark.parametrize(("num_experts", "top_k"), [(1, 1), (2, 1), (3, 3), (4, 2), (5, 2), (8, 2), (64, 1), (64, 6)])
def test_order_inverse_and_offsets(num_experts, top_k, tokens, block, monkeypatch):
    monkeypatch.setattr(grouping, "choose_launch", lambda op, *sizes: Launch(block_m=block))
    check(draw(tokens, top_k, num_experts), num_experts)


@pytest.mark.parametrize("tokens", [1, 64, 300, 513])
def test_with_the_shipped_launches(tokens):
    check(draw(tokens, 2, 4), 4)


def test_more_programs_than_a_step_over_their_counts(monkeypatch):
    """At E = 64 the counts of 16 programs are read at a time; 300 pairs are 19 blocks of 16."""
    monkeypatch.setattr(grouping, "choose_launch", lambda op, *sizes: Launch(block_m=16))
    check(draw(300, 1, 64), 64)


@pytest.mark.parametrize("expert", [0, 2, 3])
def test_all_tokens_to_one_expert(expert):
    check(torch.full((70, 1), expert, device=DEVICE), 4)


def test_more_experts_than_the_kernels_take_run_the_reference():
    check(draw(9, 3, 65), 65)


def test_ids_of_another_integer_dtype_and_layout():
    experts = draw(17, 2, 4)
    with backend.use("triton"):
        result = group_tokens(experts.int().T.contiguous().T, 4)
    assert torch.equal(result.order_N, group_tokens_reference(experts, 4)[0])
    assert result.order_N.dtype == torch.int64


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_opcheck(implementation):
    with backend.use(implementation):
        torch.library.opcheck(torch.ops.moe_kernels.group_tokens.default, (draw(6, 2, 4), 4))


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_compile_of_a_full_graph(implementation):
    def place(experts):
        result = group_tokens(experts, 4)
        return result.order_N, result.inverse_N, result.offsets_E1

    torch._dynamo.reset()
    with backend.use(implementation):
        compiled = torch.compile(place, fullgraph=True, backend="aot_eager")(draw(9, 2, 4))
    for actual, expected in zip(compiled, group_tokens_reference(draw(9, 2, 4), 4), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("block", [16, 64])
def test_an_id_that_is_no_expert_counts_as_the_nearest(block, monkeypatch):
    """On a card nobody waits to look at the ids: every pair must have a place of its own all the same."""
    monkeypatch.setattr(grouping, "choose_launch", lambda op, *sizes: Launch(block_m=block))
    experts = draw(20, 2, 5)
    experts[[0, 3, 7, 19], [1, 0, 1, 1]] = torch.tensor([5, -1, 1 << 40, 9], device=DEVICE)
    for group in (grouping._group_by_kernels, group_tokens_reference):
        for actual, expected in zip(group(experts, 5), group(experts.clamp(0, 4), 5), strict=True):
            assert torch.equal(actual, expected)
