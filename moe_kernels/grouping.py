"""Token-expert pairs in expert order. T tokens, K experts per token, E experts, N = T*K pairs; pair n = t*K + k."""

import os
from dataclasses import dataclass

import torch
from torch import Tensor

from . import backend
from .launch import arch_of, choose_launch, launch, recording

MOST_PAIRS = 1 << 31
MOST_KERNEL_EXPERTS = 64  # the routing and grouping kernels hold a token's or a block's experts in registers


@dataclass(frozen=True, eq=False)
class Grouping:
    order_N: Tensor  # int64: the pair at each place of the expert order; its token is order_N // K
    inverse_N: Tensor  # int64: the place of each pair; order_N[inverse_N] = 0..N-1
    offsets_E1: Tensor  # int64 [E+1]: expert e holds places offsets[e]..offsets[e+1]-1


def group_tokens(experts_TK: Tensor, num_experts: int) -> Grouping:
    """Sorts the pairs by expert, stably: within an expert they keep their order. `ValueError` as `check_expert_ids` has it."""
    if backend.runs_cpp_directly(experts_TK):  # without the custom operator's wrapper, which takes longer than a token's grouping
        return Grouping(*torch.ops.moe_kernels.group_tokens_cpp(experts_TK, num_experts))
    return Grouping(*_group_tokens(experts_TK, num_experts))


def check_expert_ids(experts_TK: Tensor, num_experts: int) -> None:
    """`ValueError` for an expert outside 0..E-1; on a GPU, which would have to wait for the answer, only with MOE_KERNELS_CHECK=1.

    Without that an id outside counts there as the nearest inside.
    """
    if experts_TK.numel() and (experts_TK.device.type == "cpu" or os.environ.get("MOE_KERNELS_CHECK") == "1"):
        lowest, highest = torch.aminmax(experts_TK)
        if lowest < 0 or highest >= num_experts:
            raise ValueError(f"the routing has expert {int(lowest if lowest < 0 else highest)}, which lies outside 0..{num_experts - 1}")


@torch.library.custom_op("moe_kernels::group_tokens", mutates_args=())
def _group_tokens(experts_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    if backend.runs_cpp(experts_TK):
        return torch.ops.moe_kernels.group_tokens_cpp(experts_TK, num_experts)  # which looks at every id itself
    kernels = backend.active(experts_TK.device.type) == "triton" and num_experts <= MOST_KERNEL_EXPERTS
    if kernels and experts_TK.numel() >= MOST_PAIRS:
        raise ValueError(f"{experts_TK.numel()} pairs of a token and an expert are too many: the kernels count less than {MOST_PAIRS}")
    check_expert_ids(experts_TK, num_experts)
    if kernels:
        return _group_by_kernels(experts_TK, num_experts)
    return group_tokens_reference(experts_TK, num_experts)


@_group_tokens.register_fake
def _(experts_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    if recording():
        return _group_by_kernels(experts_TK, num_experts)
    pairs_N = experts_TK.reshape(-1).long()
    return torch.empty_like(pairs_N), torch.empty_like(pairs_N), pairs_N.new_empty(num_experts + 1)


def group_tokens_reference(experts_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    pairs_N = experts_TK.reshape(-1).clamp(0, num_experts - 1)  # as the kernels do; on a CPU the ids have been checked
    order_N = pairs_N.argsort(stable=True)
    inverse_N = torch.empty_like(order_N).scatter_(0, order_N, torch.arange(len(order_N), device=order_N.device))
    counts_E = (pairs_N[:, None] == torch.arange(num_experts, device=pairs_N.device)).sum(0)
    offsets_E1 = torch.nn.functional.pad(counts_E.cumsum(0), (1, 0))
    return order_N, inverse_N, offsets_E1


def _group_by_kernels(experts_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same in one launch, or two above a block of pairs; nothing of the ids is read on the host."""
    from .triton import _grouping as kernels  # triton is not everywhere where the reference runs

    pairs_N = experts_TK.reshape(-1).long().contiguous()
    size = len(pairs_N)
    e_pad = 1 << (num_experts - 1).bit_length()
    chosen = choose_launch("group", num_experts, 1, size, arch_of(pairs_N.device))
    block = max(16, chosen.block_m // max(1, e_pad // 8))  # a program holds block * e_pad numbers
    programs = -(-size // block)
    order_N, inverse_N = torch.empty_like(pairs_N), torch.empty_like(pairs_N)
    offsets_E1 = (pairs_N.new_empty if size else pairs_N.new_zeros)(num_experts + 1)
    counts_PE = torch.empty(programs, num_experts, dtype=torch.int32, device=pairs_N.device)
    constants = {"E": num_experts, "BLOCK": block, "E_PAD": e_pad}
    if programs > 1:
        launch(kernels.count_kernel, (programs,), pairs_N, counts_PE, size, options=chosen.options, **constants)
    launch(
        kernels.place_kernel, (programs,), pairs_N, counts_PE, order_N, inverse_N, offsets_E1, size,
        options=chosen.options, ALONE=programs <= 1, ROWS=max(1, 1024 // e_pad), **constants,
    )  # fmt: skip
    return order_N, inverse_N, offsets_E1


def active_experts(tokens: int, top_k: int, experts: int) -> float:
    """Experts that at least one token chose: the expectation, if each expert is as likely as any other."""
    return experts * (1 - (1 - top_k / experts) ** tokens)
