"""Loads a mixture on the CPU and generates: `python -m benchmarks.full_scale.load DIR TOKENS` prints its figures as JSON."""

import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass

import torch

from benchmarks.full_scale.watch import memory_of
from model.generation import complete
from model.load import load_model

PROMPT = "### C++\nSum of the first n odd numbers\n### Code\n"


@dataclass
class Loaded:
    load_seconds: float
    prompt_seconds: float  # the first forward, which also reads what loading only mapped
    token_seconds: float  # median
    prompt_tokens: int
    before: int  # resident bytes of Python, torch and transformers


@torch.inference_mode()
def load_and_generate(folder: str, tokens: int) -> Loaded:
    before, begin = memory_of().get("VmRSS", 0), time.perf_counter()
    model, tokenizer = load_model(folder, device="cpu")
    loaded = time.perf_counter()
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    output = model(ids, use_cache=True, logits_to_keep=1)
    read, times = time.perf_counter(), []
    for _ in range(tokens):
        start = time.perf_counter()
        output = model(output.logits[:, -1:].argmax(dim=-1), past_key_values=output.past_key_values, use_cache=True)
        times.append(time.perf_counter() - start)
    complete(model, tokenizer, [PROMPT], max_new_tokens=2, batch_size=1, progress=False)  # as users generate
    return Loaded(loaded - begin, read - loaded, statistics.median(times), ids.shape[1], before)


if __name__ == "__main__":
    print(json.dumps(asdict(load_and_generate(sys.argv[1], int(sys.argv[2])))))
