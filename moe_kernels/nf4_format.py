"""The format of bitsandbytes' NF4 as constants: levels, block sizes, the map of the 8-bit absmax, and the stored description.

`moe_kernels.nf4` says how they make a weight.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes


@dataclass(frozen=True)
class NF4Format:
    """What the bytes mean. There is one such format; nothing about it is guessed from a tensor's dtype."""

    quant_type: str = "nf4"
    block: int = 64  # values per absmax
    nested_block: int = 256  # absmax per nested absmax
    levels: tuple[float, ...] = (
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    )

    @property
    def bits(self) -> float:
        """Of a value in a large weight: 4 and its share of an 8-bit absmax and of a nested fp32 one."""
        return 4 + 8 / self.block + 32 / (self.block * self.nested_block)


NF4 = NF4Format()
FACTS_KEY = f"quant_state.bitsandbytes__{NF4.quant_type}"
STORED_DTYPES = ("bfloat16", "float16", "float32")
_FACTS_BYTES = 1 << 12  # ours have some 200


def nf4_bytes(values: int) -> int:
    """Bytes that a weight of so many values takes."""
    blocks = -(-values // NF4.block)
    return (values + 1) // 2 + blocks + 4 * -(-blocks // NF4.nested_block)


def _made_once(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`make` with its results kept, and made with values even where the first call comes from a trace: fake tensors must not be kept."""

    @lru_cache
    @wraps(make)
    def kept(*args: torch.device) -> Tensor:
        with _disable_current_modes():
            return make(*args)

    return kept


@_made_once
def dynamic_map() -> Tensor:
    """bitsandbytes' signed 8-bit dynamic map, fp32 [256], ascending (Dettmers 2015, arXiv:1511.04561).

    For each exponent i = 0..6: the midpoints of 2**i equal steps of [0.1, 1], times 10**(i-6), with both signs; and 0 and 1.
    """
    values = [0.0, 1.0]
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2**i + 1, dtype=torch.float32, device="cpu")
        middles = 10 ** (i - 6) * ((edges[:-1] + edges[1:]) / 2)
        values += [*middles.tolist(), *(-middles).tolist()]
    return torch.tensor(sorted(values), dtype=torch.float32, device="cpu")


@_made_once
def dynamic_map_on(device: torch.device) -> Tensor:
    """`dynamic_map` on a device, copied there once."""
    return dynamic_map().to(device)


@_made_once
def level_pairs(device: torch.device) -> Tensor:
    """The two levels that each of the 256 bytes stands for, fp32 [256, 2]."""
    levels = torch.tensor(NF4.levels, device=device)
    byte = torch.arange(256, device=device)
    return torch.stack([levels[byte >> 4], levels[byte & 15]], dim=1)


def dtype_name(dtype: torch.dtype) -> str:
    """As bitsandbytes writes it, e.g. bfloat16."""
    return str(dtype).removeprefix("torch.")


def pack_facts(shape: tuple[int, ...], dtype: torch.dtype, nested_offset: float) -> Tensor:
    """What is not a tensor of a stored weight, as bitsandbytes stores it: the bytes of a JSON object."""
    facts = {
        "quant_type": NF4.quant_type,
        "blocksize": NF4.block,
        "dtype": dtype_name(dtype),
        "shape": shape,
        "nested_blocksize": NF4.nested_block,
        "nested_dtype": "float32",
        "nested_offset": nested_offset,
    }
    return torch.tensor(list(json.dumps(facts).encode()), dtype=torch.uint8)


def read_facts(state: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """What `pack_facts` wrote for the weight `name`; `ValueError` unless keys, types, block sizes and tables are those of this format."""
    if name not in state or f"{name}.{FACTS_KEY}" not in state:
        raise ValueError(f"{name} is not stored as NF4: the keys {name} and {name}.{FACTS_KEY} are needed")
    facts = _parse_facts(state[f"{name}.{FACTS_KEY}"], name)
    if f"{name}.nested_absmax" not in state or f"{name}.absmax" not in state:
        raise ValueError(f"{name} is NF4 without nested absmax; only weights quantised with double quantisation are read")
    if facts.get("blocksize") != NF4.block or facts.get("nested_blocksize") != NF4.nested_block:
        raise ValueError(f"{name} has blocks of {facts.get('blocksize')} and {facts.get('nested_blocksize')}; only 64 and 256 are read")
    if facts.get("quant_type") != NF4.quant_type or facts.get("nested_dtype") != "float32":
        raise ValueError(
            f"{name} is {facts.get('quant_type')!r} with absmax in {facts.get('nested_dtype')!r}; only 'nf4' with 'float32' is read"
        )
    if facts.get("dtype") not in [*STORED_DTYPES]:  # a list, as the value need not be hashable
        raise ValueError(f"{name} was of dtype {facts.get('dtype')!r}; allowed: {', '.join(STORED_DTYPES)}")
    shape: Any = facts.get("shape")
    offset: Any = facts.get("nested_offset")
    if not isinstance(shape, list) or not shape or not all(type(size) is int and size > 0 for size in shape):
        raise ValueError(f"{name} has shape {shape!r}; it must be a list of positive whole numbers")
    if type(offset) not in (int, float) or not 0 <= offset < math.inf:
        raise ValueError(f"{name} has nested_offset {offset!r}; it must be a finite number that is not negative")
    tables = {"quant_map": torch.tensor(NF4.levels), "nested_quant_map": dynamic_map()}
    for key, table in tables.items():
        stored = state.get(f"{name}.{key}")
        if stored is not None and (stored.shape != table.shape or not torch.allclose(stored.float().cpu(), table, rtol=1e-6, atol=0)):
            raise ValueError(f"{name}.{key} is not the table of NF4")
    return facts


def _parse_facts(packed: Tensor, name: str) -> dict[str, Any]:
    if packed.dtype != torch.uint8 or packed.dim() != 1 or packed.numel() > _FACTS_BYTES:
        raise ValueError(f"{name}.{FACTS_KEY} is {dtype_name(packed.dtype)} {list(packed.shape)}; it must be at most {_FACTS_BYTES} bytes")
    try:
        facts = json.loads(bytes(packed.tolist()))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}.{FACTS_KEY} is not JSON: {error}") from None
    if not isinstance(facts, dict):
        raise ValueError(f"{name}.{FACTS_KEY} holds a {type(facts).__name__}, not a JSON object")
    return facts
