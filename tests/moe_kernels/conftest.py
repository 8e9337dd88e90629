"""Without a CUDA device Triton's kernels run in its interpreter, which must be chosen before triton is imported."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The interpreter's tests hand kernels tensors of the CPU; on a machine with a card the tests marked gpu cover the same."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return
    for item in items:
        if item.path.parent.name == "moe_kernels" and (item.path.name.startswith("test_triton_") or "triton" in item.name):
            item.add_marker(pytest.mark.skip(reason="needs Triton's interpreter; this machine has a CUDA device"))
