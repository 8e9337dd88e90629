"""A training step run on tensors without memory: what it would hold at its peak, and what it would compute.

The step is the real one, module by module: PyTorch's fake tensors have shapes and dtypes alone, so what autograd keeps, what a loss copies
and what gradient checkpointing computes again are counted, not derived. What a kernel takes and gives back within is not seen.
bitsandbytes' `Linear4bit` cannot hold a fake tensor; `FakeLinear4bit` does what its forward and backward do.

T tokens of a batch, V vocabulary.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode

from model.quantization import MatrixModule
from model.stopping import undisturbed
from moe_kernels.cards import Card
from moe_kernels.nf4 import NF4Weight
from moe_kernels.nf4_format import NF4, nf4_bytes
from moe_kernels.op_costs import cost, tensors_in

ACTIVATIONS, LOGITS, GRADIENTS, WORKSPACE = "activations", "logits and loss", "gradients", "dequantised"

_DEQUANTISE = "dequantize_4bit"


@dataclass(frozen=True)
class Operation:
    """One call of PyTorch's or of this package's: its bytes and FLOPs, and whether it computes in fp32."""

    name: str
    bytes: float
    flops: float
    is_fp32: bool
    values: float = 0.0  # dequantised

    def seconds(self, card: Card) -> float:
        """The longest of reading, multiplying and dequantising, and the launch."""
        gemm = card.gemm_fp32 if self.is_fp32 else card.gemm
        return card.launch + max(self.bytes / (card.dram * card.dram_share), self.flops / gemm, self.values / card.dequantise)


class Trace(TorchDispatchMode):
    """Notes every operation, and every storage when it comes and goes, while it is on."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.forward = 0  # operations of the first forward
        config: Any = model.config
        self._vocabulary = config.vocab_size
        self._alive: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()  # storages by number
        self._sizes: list[int] = []
        self._parts: list[str] = []  # of each storage
        self._own = [tensor.untyped_storage() for tensor in [*model.parameters(), *model.buffers()]]  # the model's, which are no news
        for storage in self._own:
            self._alive[storage] = len(self._sizes)
            self._sizes.append(0)
            self._parts.append(ACTIVATIONS)
        self._events: list[int] = []  # n: storage n comes; -n - 1: it goes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        found = cost(func, args, kwargs or {}, out)
        results = tensors_in(out)
        if found is not None:
            wide = bool(results) and results[0].dtype == torch.float32
            name = func.overloadpacket.__name__
            self.operations.append(Operation(name, *found, wide, results[0].numel() if name == _DEQUANTISE else 0.0))
        for tensor in results:
            storage = tensor.untyped_storage()
            if storage not in self._alive:
                number = len(self._sizes)
                self._alive[storage] = number
                self._sizes.append(storage.nbytes())
                self._parts.append(self._part(tensor, func))
                self._events.append(number)
                weakref.finalize(storage, self._events.append, -number - 1)
        return out

    def _part(self, tensor: Tensor, func: Any) -> str:
        if func.overloadpacket.__name__ == _DEQUANTISE:
            return WORKSPACE
        return LOGITS if tensor.dim() > 1 and tensor.shape[-1] == self._vocabulary else ACTIVATIONS

    def mark_gradients(self, model: nn.Module) -> None:
        """What the parameters of `model` have as their gradients now was no activation."""
        for parameter in model.parameters():
            if parameter.grad is not None:
                self._parts[self._alive[parameter.grad.untyped_storage()]] = GRADIENTS

    def peak(self) -> dict[str, int]:
        """Bytes by part at the moment when they are most."""
        now = dict.fromkeys((ACTIVATIONS, LOGITS, GRADIENTS, WORKSPACE), 0)
        total, most, best = 0, 0, dict(now)
        for event in self._events:
            number, sign = (event, 1) if event >= 0 else (-event - 1, -1)
            now[self._parts[number]] += sign * self._sizes[number]
            total += sign * self._sizes[number]
            if total > most:
                most, best = total, dict(now)
        return best


Step = Callable[[nn.Module, dict[str, Tensor]], Tensor]  # the loss of a batch


def trace_step(model: nn.Module, step: Step, batch: tuple[int, int], *, micro_steps: int) -> Trace:
    """Traces `micro_steps` losses and backwards of `model` (of fake tensors, within their mode) on `batch` = (rows, tokens of a row)."""
    inputs = {name: torch.zeros(batch, dtype=torch.int64) for name in ("input_ids", "labels")}
    inputs["attention_mask"] = torch.ones(batch, dtype=torch.int64)
    with Trace(model) as trace:
        for _ in range(micro_steps):
            loss = step(model, inputs)
            trace.forward = trace.forward or len(trace.operations)
            loss.backward()
            del loss
            trace.mark_gradients(model)
    return trace


@contextmanager
def fake(model: nn.Module) -> Iterator[nn.Module]:
    """`model`, made on the meta device, with its tensors replaced by fake ones on the CPU, which dispatch as real ones do.

    Undisturbed: PyTorch 2.13 aborts the process if an exception leaves an operation of fake tensors in the wrong place (2 of 200 SIGTERMs).
    """
    seen: dict[int, Any] = {}

    def faked(tensor: Tensor | None) -> Any:
        if tensor is None:
            return None
        if id(tensor) not in seen:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype)
            seen[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
        return seen[id(tensor)]

    with undisturbed(), FakeTensorMode():
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    tensors[name] = faked(tensor)
        yield model


class FakeLinear4bit(Linear4bit):
    """A `Linear4bit` by class, so that PEFT adapts it as one, whose weight is as many bytes and no values."""

    def __init__(self, of: nn.Linear, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.compute_dtype = of.in_features, of.out_features, dtype
        self.register_parameter("bias", None)
        packed: Any = torch.empty(nf4_bytes(of.weight.numel()), dtype=torch.uint8, device="meta")
        self.weight = nn.Parameter(packed, requires_grad=False)
        for name, value in (("compress_statistics", True), ("quant_type", NF4.quant_type), ("quant_state", None)):
            setattr(self.weight, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return _MatMul4Bit.apply(x.to(self.compute_dtype), self.weight, (self.out_features, self.in_features)).to(x.dtype)


class _MatMul4Bit(torch.autograd.Function):
    """bitsandbytes' function of that name: the whole matrix is dequantised forward and again backward, and nothing else is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(packed)
        ctx.shape = shape
        return linear(x, _dequantised(packed, shape, x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0] @ _dequantised(ctx.saved_tensors[0], ctx.shape, grads[0].dtype), None, None


def _dequantised(packed: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    return torch.ops.bitsandbytes.dequantize_4bit(packed, packed[:0].float(), NF4.block, NF4.quant_type, shape, dtype)


def give_nf4(model: nn.Module, dtype: torch.dtype) -> None:
    """NF4 weights without memory for the quantised matrices of a mixture on the meta device."""
    for module in model.modules():
        if isinstance(module, MatrixModule):
            for name, shape in module.quantized_matrices().items():
                blocks = -(-torch.Size(shape).numel() // NF4.block)
                packed = torch.empty(blocks * NF4.block // 2, 1, dtype=torch.uint8, device="meta")
                absmax = torch.empty(blocks, dtype=torch.uint8, device="meta")
                nested = torch.empty(-(-blocks // NF4.nested_block), dtype=torch.float32, device="meta")
                module.set_nf4(name, NF4Weight(packed, absmax, nested, 0.0, tuple(shape), dtype))
