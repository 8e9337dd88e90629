"""A standard normal stream that depends on nothing but a seed and a counter.

The noise of a router must come out the same in a checkpointed recompute, at any block size, and on any backend. So each
number is a function of (seed, counter) alone: Philox-4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as
1, 2, 3"), then Box-Muller in fp64, rounded to fp32.
"""

import math

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = 0xFFFFFFFF


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int | Tensor, int | Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox-4x32-10: four 32-bit words of `counter` (int64 tensors of one shape) and two of `key` to four random words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # The product wraps in int64, and its 64 bits are still those of the unsigned product.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (product1 >> 32 & _LOW) ^ c1 ^ k0, product1 & _LOW, (product0 >> 32 & _LOW) ^ c3 ^ k1, product0 & _LOW
        k0, k1 = k0 + _KEY_STEPS[0] & _LOW, k1 + _KEY_STEPS[1] & _LOW
    return c0, c1, c2, c3


def standard_normal(seed: int | Tensor, tokens: int, experts: int, device: torch.device | str = "cpu") -> Tensor:
    """Standard normals, fp32 [T, E]; entry (t, e) is number t*E + e of the stream of `seed` (modulo 2**64; or a 0-dim int64 tensor)."""
    index = torch.arange(tokens * experts, device=device)
    zero = torch.zeros_like(index)
    word0, word1, _, _ = philox((index & _LOW, index >> 32, zero, zero), (seed & _LOW, seed >> 32 & _LOW))
    radius = (-2 * ((word0 + 1).double() * 2**-32).log()).sqrt()  # of a uniform in (0, 1]
    return (radius * (word1.double() * (2 * math.pi * 2**-32)).cos()).float().view(tokens, experts)
