"""Fixtures that every room's tests share."""

import json
import os
import shutil
import subprocess
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
        plain = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "true"]
        if shutil.which("bwrap") and subprocess.run(plain, capture_output=True).returncode == 0:
            raise  # what is at fault is not this machine
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def metaspace():
    """As Mistral's: a text begins with a space that decoding drops, and bytes stand for what is in no piece."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    trained.train_from_iterator(["def f(a): if a: return x", "int f(int a) { return a; }", "    " * 3] * 9, trainer)
    pieces = json.loads(trained.to_str())["model"]
    vocabulary = pieces["vocab"] | {f"<0x{byte:02X}>": len(pieces["vocab"]) + byte for byte in range(256)}
    merges = [tuple(merge) for merge in pieces["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = trained.pre_tokenizer
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
