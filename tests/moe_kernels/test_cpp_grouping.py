"""Grouping in C++: the metadata's own properties, and equality with the reference bit for bit."""

import pytest
import torch

from moe_kernels import backend
from moe_kernels.grouping import group_tokens, group_tokens_reference

pytestmark = pytest.mark.skipif(bool(backend.extension_problem()), reason=backend.extension_problem() or "built")


def draw(tokens, top_k, num_experts):
    generator = torch.Generator().manual_seed(tokens + num_experts)
    return torch.rand(tokens, num_experts, generator=generator).argsort(dim=1)[:, :top_k]


def check(experts, num_experts):
    with backend.use("cpp"):
        result = group_tokens(experts, num_experts)
    pairs = experts.flatten().tolist()
    assert result.order_N.tolist() == sorted(range(len(pairs)), key=lambda n: (pairs[n], n))
    assert result.order_N[result.inverse_N].tolist() == list(range(len(pairs)))
    assert result.offsets_E1.diff().tolist() == [pairs.count(e) for e in range(num_experts)]
    for actual, expected in zip(vars(result).values(), group_tokens_reference(experts, num_experts), strict=True):
        assert actual.dtype == torch.int64
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("tokens", [0, 1, 2, 17, 70, 513])
@pytest.mark.parametrize(("num_experts", "top_k"), [(1, 1), (2, 1), (3, 3), (4, 2), (5, 2), (8, 2), (64, 1), (64, 6), (300, 2)])
def test_order_inverse_and_offsets(num_experts, top_k, tokens):
    check(draw(tokens, top_k, num_experts), num_experts)


@pytest.mark.parametrize("expert", [0, 2, 3])
def test_all_tokens_to_one_expert(expert):
    check(torch.full((70, 1), expert), 4)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8, torch.int64])
def test_ids_of_another_integer_dtype_and_layout(dtype):
    experts = draw(17, 2, 4)
    check(experts.to(dtype).T.contiguous().T, 4)
    check(experts.repeat_interleave(2, dim=1)[:, ::2], 4)
    check(experts[:, 0].to(dtype), 4)


@pytest.mark.parametrize("outside", [-1, 4, 1 << 40, -(1 << 63)])
def test_an_expert_out_of_range_is_refused(outside):
    experts = draw(9, 2, 4)
    experts[5, 1] = outside
    with backend.use("cpp"), pytest.raises(ValueError, match=rf"pair 11 has expert {outside}, which lies outside 0\.\.3"):
        group_tokens(experts, 4)


@pytest.mark.parametrize("operator", ["group_tokens", "group_tokens_cpp"])
def test_opcheck(operator):
    with backend.use("cpp"):
        torch.library.opcheck(getattr(torch.ops.moe_kernels, operator).default, (draw(6, 2, 4), 4))


def test_compile_of_a_full_graph():
    def place(experts):
        result = group_tokens(experts, 4)
        return result.order_N, result.inverse_N, result.offsets_E1

    torch._dynamo.reset()
    with backend.use("cpp"):
        compiled = torch.compile(place, fullgraph=True, backend="aot_eager")(draw(9, 2, 4))
    for actual, expected in zip(compiled, group_tokens_reference(draw(9, 2, 4), 4), strict=True):
        assert torch.equal(actual, expected)
