"""Which of the kernels' tests run on this machine."""

import os

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The interpreter's tests hand kernels tensors of the CPU; on a machine with a card the tests marked gpu cover the same."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return
    for item in items:
        if item.path.parent.name == "moe_kernels" and (item.path.name.startswith("test_triton_") or "triton" in item.name):
            item.add_marker(pytest.mark.skip(reason="needs Triton's interpreter; this machine has a CUDA device"))
