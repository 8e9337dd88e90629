"""Loads a mixture, reads a prompt, generates, and prints the most bytes that it took, mapped files included: SMALL FOLDER TOKENS.

SMALL is a mixture that does the same first, so that libraries and their buffers are no part of the peak.
"""

import gc
import re
import sys
import threading
import time
from pathlib import Path

import torch

from model import MoEForCausalLM


def resident() -> int:
    return sum(int(size) << 10 for size in re.findall(r"Rss(?:Anon|File):\s+(\d+) kB", Path("/proc/self/status").read_text()))


@torch.inference_mode()
def run(folder: str, tokens: int) -> None:
    model = MoEForCausalLM.from_pretrained(folder)
    # Of a mapped file only what is read is in memory, so the tokens have to differ for every expert to be met.
    ids = torch.randint(model.config.vocab_size, (1, tokens - 4), generator=torch.Generator().manual_seed(0))
    output = model(ids, use_cache=True, logits_to_keep=1)
    for _ in range(4):
        output = model(output.logits[:, -1:].argmax(dim=-1), past_key_values=output.past_key_values, use_cache=True)


def main(small: str, folder: str, tokens: str) -> None:
    run(small, 16)
    gc.collect()
    start, peak, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, resident() - start)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        run(folder, int(tokens))
    finally:
        done.set()
        watcher.join()
    print(peak)


if __name__ == "__main__":
    main(*sys.argv[1:])
