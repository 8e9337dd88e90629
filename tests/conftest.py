"""Fixtures that every room's tests share."""

import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a name that is not there fails at once instead of after retries
if not torch.cuda.is_available():
    # Triton's kernels then run in its interpreter. It must be chosen before anything imports triton, and bitsandbytes does.
    os.environ.setdefault("TRITON_INTERPRET", "1")

SHARED_DATA = Path(os.environ.get("MOE_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real pairs and evaluation tasks that lies beside the checkout of those who have it."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"{SHARED_DATA} is absent; set MOE_SHARED_DATA to the data folder")
    return SHARED_DATA


@pytest.fixture(scope="module")
def sandbox():
    """Where generated programs run; imported here, as most rooms' tests do without."""
    from eval.sandbox import Sandbox, SandboxError

    try:
        return Sandbox.open()
    except SandboxError as error:
        pytest.skip(str(error))
