"""OpenVINO and ONNX Runtime, for `benchmarks.cpu`: one compiled graph an expert, 4-bit products around SwiGLU, looped over from Python."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.cpu.contender import BEST, Contender, Missing
from benchmarks.cpu.problem import THREADS, D, E, F, Problem, Weights

Run = Callable[[], Any]
Expert = Callable[[np.ndarray], np.ndarray]  # rows [n, D] to [n, D]


def imported(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise Missing(f"{name} is not installed ({error})") from None


def looped(experts: list[Expert]) -> Callable[[Problem], Run]:
    def prepare(problem: Problem) -> Run:
        x = problem.x.numpy()
        plan = [(e, tokens.numpy(), gates.numpy()) for e, tokens, gates in problem.pairs_of_expert]

        def run() -> np.ndarray:
            y = np.zeros_like(x)
            for e, tokens, gates in plan:
                y[tokens] += experts[e](x[tokens]) * gates
            return y

        return run

    return prepare


def quantised(weight: Tensor, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric 4-bit values of `weight` [out, in] around 8, two a byte with the even one low [out, in / group, group / 2], and their fp32
    scales [out, in / group]."""
    blocks = weight.float().unflatten(1, (-1, group))
    extreme = blocks.gather(2, blocks.abs().argmax(2, keepdim=True))
    scale = extreme / -8  # the extreme value is then -8, which has no positive twin
    values = (blocks / scale).round_().add_(8).clamp_(0, 15).to(torch.uint8)
    return (values[..., 0::2] | values[..., 1::2] << 4).numpy(), scale[..., 0].numpy()


def openvino(weights: Weights) -> Callable[[Problem], Run]:
    """u4 in groups of 64 with fp16 scales; activations quantised to int8 in groups of 32 as it runs. The rest is by its own choice in fp32
    or bf16, as the CPU can."""
    ov = imported("openvino")
    core = ov.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": THREADS, "DYNAMIC_QUANTIZATION_GROUP_SIZE": 32})

    def compiled(e: int) -> Expert:
        request = core.compile_model(_openvino_expert(weights, e), "CPU").create_infer_request()
        return lambda rows: request.infer([rows], share_inputs=True, share_outputs=True)[0]

    return looped([compiled(e) for e in range(E)])


def _openvino_expert(weights: Weights, e: int) -> Any:
    ov, ops = import_module("openvino"), import_module("openvino.opset13")

    def nibbles(shape: list[int], values: np.ndarray) -> Any:
        tensor = ov.Tensor(ov.Type.u4, ov.Shape(shape))  # with memory of its own: it would not keep that of an array
        tensor.data.reshape(-1)[:] = values.reshape(-1)
        return ops.convert(ops.constant(tensor), "f16")

    def product(rows: Any, weight: Tensor) -> Any:
        values, scale = quantised(weight, 64)
        shifted = ops.subtract(nibbles([*scale.shape, 64], values), nibbles([1, 1, 1], np.full(1, 8, np.uint8)))
        scaled = ops.multiply(shifted, ops.constant(scale[..., None].astype(np.float16)))
        flat = ops.reshape(scaled, ops.constant(list(weight.shape)), special_zero=False)
        return ops.matmul(rows, ops.convert(flat, "f32"), False, True)

    x = ops.parameter([-1, D], np.float32)
    gate, up, down = weights.expert(e)
    h = ops.multiply(ops.swish(product(x, gate)), product(x, up))
    return ov.Model([ops.result(product(h, down))], [x])


def onnxruntime(weights: Weights) -> Callable[[Problem], Run]:
    """MatMulNBits in blocks of 32 at accuracy level 4: activations quantised to int8 as it runs."""
    ort, _ = imported("onnxruntime"), imported("onnx")
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 3

    def compiled(e: int) -> Expert:
        session = ort.InferenceSession(_onnx_expert(weights, e), options, providers=["CPUExecutionProvider"])
        return lambda rows: session.run(None, {"x": rows})[0]

    return looped([compiled(e) for e in range(E)])


def _onnx_expert(weights: Weights, e: int) -> bytes:
    onnx = import_module("onnx")
    helper, numpy_helper, float32 = onnx.helper, onnx.numpy_helper, onnx.TensorProto.FLOAT
    nodes: list[Any] = []
    constants: list[Any] = []

    def product(source: str, target: str, weight: Tensor) -> None:
        values, scale = quantised(weight, 32)
        names = [f"{target}_values", f"{target}_scale"]
        for part, name in zip((values, scale), names, strict=True):
            constants.append(numpy_helper.from_array(np.ascontiguousarray(part), name))
        out, width = weight.shape
        options = {"K": width, "N": out, "bits": 4, "block_size": 32, "accuracy_level": 4}
        nodes.append(helper.make_node("MatMulNBits", [source, *names], [target], domain="com.microsoft", **options))

    gate, up, down = weights.expert(e)
    product("x", "gate", gate)
    product("x", "up", up)
    nodes.append(helper.make_node("Sigmoid", ["gate"], ["sigmoid"]))
    nodes.append(helper.make_node("Mul", ["gate", "sigmoid"], ["silu"]))
    nodes.append(helper.make_node("Mul", ["silu", "up"], ["h"]))
    product("h", "y", down)
    rows = [helper.make_tensor_value_info(name, float32, ["n", D]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "expert", rows[:1], rows[1:], constants)
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    made: bytes = helper.make_model(graph, opset_imports=domains, ir_version=8).SerializeToString()
    return made


assert F % 64 == 0
CONTENDERS = [
    Contender("OpenVINO u4 g64", openvino, kind=BEST, result=torch.from_numpy),
    Contender("ONNX Runtime MatMulNBits b32", onnxruntime, kind=BEST, result=torch.from_numpy),
]
