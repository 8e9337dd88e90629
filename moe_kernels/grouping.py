"""Token-expert pairs in expert order. T tokens, K experts per token, E experts, N = T*K pairs; pair n = t*K + k."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Grouping:
    order_N: Tensor  # int64: the pair at each place of the expert order; its token is order_N // K
    inverse_N: Tensor  # int64: the place of each pair; order_N[inverse_N] = 0..N-1
    offsets_E1: Tensor  # int64 [E+1]: expert e holds places offsets[e]..offsets[e+1]-1


def group_tokens(experts_TK: Tensor, num_experts: int) -> Grouping:
    """Sorts the pairs by expert, stably: within an expert they keep their order. Every id lies in 0..E-1."""
    pairs_N = experts_TK.reshape(-1)
    order_N = pairs_N.argsort(stable=True)
    inverse_N = torch.empty_like(order_N).scatter_(0, order_N, torch.arange(len(order_N), device=order_N.device))
    counts_E = (pairs_N[:, None] == torch.arange(num_experts, device=pairs_N.device)).sum(0)
    offsets_E1 = torch.nn.functional.pad(counts_E.cumsum(0), (1, 0))
    return Grouping(order_N, inverse_N, offsets_E1)
