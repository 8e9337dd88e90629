"""Load: generation in process and a served model, for as long as is wanted, with answers compared and memory watched.

python -m tests.faults.soak --minutes 10 --clients 32 --dir MODEL

32 clients ask a server on loopback (`python -m model.serve MODEL`) for greedy answers of mixed lengths, streamed or not; some close the
connection half-way, some send what is no request. Then 500 generations in process. Status 1 where an answer is not the one that the
model gives alone, memory grows by more than 2 % from the second fifth of the time to the last, answers are fewer than clients, or the
server answers 5xx or ends.
"""

import argparse
import http.client
import json
import os
import random
import resource
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from model.load import load_model

PROMPTS = ["def add(a, b):\n", "int f(int a) {", "x", "for i in range(10):\n    ", "a = b + c * " * 8, "class A {", "return ", "(" * 9]
LENGTHS = (1, 3, 8, 20)
GROWTH = 0.02
MALFORMED: list[tuple[str, str, bytes]] = [
    ("POST", "/v1/completions", b"{not json"),
    ("POST", "/v1/completions", b""),
    ("POST", "/v1/completions", b"\xff\xfe\0"),
    ("POST", "/v1/completions", b"[1, 2]"),
    ("POST", "/v1/completions", b"[" * 100_000),
    ("POST", "/v1/completions", b'{"max_tokens": 5}'),
    ("POST", "/v1/completions", b'{"prompt": ""}'),
    ("POST", "/v1/completions", b'{"prompt": 7}'),
    ("POST", "/v1/completions", b'{"prompt": ["a"], "max_tokens": 2}'),
    ("POST", "/v1/completions", b'{"prompt": "a", "max_tokens": 1000000000000}'),
    ("POST", "/v1/completions", b'{"prompt": "a", "max_tokens": -1}'),
    ("POST", "/v1/completions", b'{"prompt": "a", "max_tokens": "many"}'),
    ("POST", "/v1/completions", b'{"prompt": "a", "temperature": "hot"}'),
    ("POST", "/v1/completions", b'{"prompt": "a", "temperature": NaN}'),
    ("POST", "/v1/completions", b'{"prompt": "a", "seed": []}'),
    ("POST", "/v1/completions", b'{"prompt": "a", "stop": {}}'),
    ("POST", "/v1/completions", b'{"prompt": "a", "stop": [""]}'),
    ("POST", "/v1/completions", b'{"prompt": "a", "model": "another/model"}'),
    ("POST", "/v1/completions", b'{"prompt": "a", "no_such_field": 1}'),
    ("POST", "/v1/completions", b'{"prompt": "a", "generation_config": "{\\"num_beams\\": 10000}"}'),
    ("POST", "/v1/completions", json.dumps({"prompt": "a b " * 20_000, "max_tokens": 1}).encode()),
    ("POST", "/v1/completions", b'{"prompt": "' + b"a" * (2 << 20) + b'"}'),
    ("POST", "/v1/chat/completions", b'{"messages": []}'),
    ("POST", "/v1/chat/completions", b'{"messages": "hello"}'),
    ("POST", "/v1/chat/completions", b'{"messages": [{"role": "user"}]}'),
    ("POST", "/v1/chat/completions", b'{"messages": [{"role": 7, "content": "a"}]}'),
    ("POST", "/load_model", b'{"model": "/etc"}'),
    ("POST", "/reset", b""),
    ("GET", "/v1/completions", b""),
    ("GET", "/../../etc/passwd", b""),
    ("DELETE", "/v1/models", b""),
]


def main(args: argparse.Namespace) -> int:
    served = soak_served(args.dir, args.minutes * 60, args.clients)
    print(json.dumps(served, indent=1))
    made = soak_generate(args.dir, args.generations)
    print(json.dumps(made, indent=1))
    return 1 if problems(served) + problems(made) else 0


def problems(figures: dict[str, Any]) -> list[str]:
    """What did not hold, of the figures of either soak."""
    found = [f"{name}: {figures[name]}" for name in ("wrong", "failed", "crashed") if figures.get(name)]
    growth = figures["rss_mb"]["growth"]
    if (answers := figures.get("counts", {}).get("answers with 200", 0)) < (clients := figures.get("clients", 0)):
        found.append(f"{answers} answers with 200 to {clients} clients")
    return found + ([f"memory grew by {growth:.1%}"] if growth > GROWTH else [])


def alone(folder: Path) -> dict[tuple[str, int], str]:
    """The greedy answer to each prompt at each length, one at a time, in this process."""
    model, tokenizer = load_model(str(folder), device="cpu")
    answers = {}
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        for length in LENGTHS:
            ids = model.generate(**inputs, do_sample=False, max_new_tokens=length)[0, inputs["input_ids"].shape[1] :]
            answers[prompt, length] = tokenizer.decode(ids, skip_special_tokens=True)
    return answers


@contextmanager
def server(folder: Path, log: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A served model: its process, and its port on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "model.serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", *flags]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        until = time.monotonic() + 300
        while not is_healthy(port):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server did not start: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.2)
        yield process, port
    finally:
        process.terminate()
        process.wait(30)


def is_healthy(port: int) -> bool:
    try:
        return ask(port, "GET", "/health", b"")[0] == 200
    except OSError:
        return False


def ask(port: int, method: str, path: str, body: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request(method, path, body, {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


class Client(threading.Thread):
    """Asks, gives up and sends nonsense until `until`."""

    def __init__(self, port: int, seed: int, until: float, answers: dict[tuple[str, int], str]) -> None:
        super().__init__(daemon=True)
        self._port, self._draw, self._until, self._answers = port, random.Random(seed), until, answers
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.failed: list[str] = []

    def run(self) -> None:
        while time.monotonic() < self._until:
            act = self._draw.choices((self.compare, self.cancel, self.send_malformed), (6, 2, 2))[0]
            try:
                act()
            except Exception as error:  # a client that stops would hide what comes after
                self.failed.append(f"{act.__name__}: {type(error).__name__}: {error}")

    def _request(self, length: int) -> tuple[str, bytes]:
        prompt = self._draw.choice(PROMPTS)
        wanted = {"prompt": prompt, "max_tokens": length, "temperature": 0, "stream": self._draw.random() < 0.5}
        return prompt, json.dumps(wanted).encode()

    def compare(self) -> None:
        length = self._draw.choice(LENGTHS)
        prompt, body = self._request(length)
        status, data = ask(self._port, "POST", "/v1/completions", body)
        self.counts[f"answers with {status}"] += 1
        if status == 503:  # so many are waiting
            time.sleep(self._draw.random())
        elif status != 200:
            self.failed.append(f"{status} {data[:200]!r}")
        elif (text := text_of(data)) != self._answers[prompt, length]:
            self.wrong.append(f"{prompt!r}, {length} tokens: {text!r} and not {self._answers[prompt, length]!r}")

    def cancel(self) -> None:
        """Closes the connection before the answer, or after some of it."""
        _, body = self._request(200)
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=300)
        connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        if b'"stream": true' in body and self._draw.random() < 0.5:
            connection.getresponse().read(20)
        else:
            time.sleep(self._draw.random() * 0.2)
        connection.close()
        self.counts["cancelled"] += 1

    def send_malformed(self) -> None:
        method, path, body = self._draw.choice(MALFORMED)
        try:
            status, data = ask(self._port, method, path, body)
        except (BrokenPipeError, ConnectionResetError):  # refused while it was being sent
            self.counts["malformed, closed"] += 1
            return
        self.counts[f"malformed with {status}"] += 1
        if not 400 <= status < 500 and status != 503:
            self.failed.append(f"{status} for {method} {path} {body[:80]!r}: {data[:200]!r}")


def text_of(data: bytes) -> str:
    """The answer's text, streamed or whole."""
    pieces = [part.removeprefix(b"data: ") for part in data.split(b"\n\n") if part.startswith(b"data: ")] or [data]
    return "".join(json.loads(piece)["choices"][0]["text"] or "" for piece in pieces)


def soak_served(folder: Path, seconds: float, clients: int, log: Path = Path(os.devnull)) -> dict[str, Any]:
    """Figures of `clients` clients on a served model for `seconds`; of the memory, the first fifth is warming up."""
    answers = alone(folder)
    with server(folder, log) as (process, port):
        memory = [rss(process.pid)]
        until = time.monotonic() + seconds
        running = [Client(port, seed, until, answers) for seed in range(clients)]
        for client in running:
            client.start()
        while any(client.is_alive() for client in running) and process.poll() is None:
            time.sleep(min(1.0, seconds / 40))
            memory.append(rss(process.pid))
        crashed = process.poll() is not None or not is_healthy(port)
    counts = sum((client.counts for client in running), Counter())
    return {
        "seconds": seconds,
        "clients": clients,
        "counts": dict(sorted(counts.items())),
        "wrong": [text for client in running for text in client.wrong][:20],
        "failed": [text for client in running for text in client.failed][:20],
        "crashed": crashed,
        "rss_mb": summary(memory),
    }


def soak_generate(folder: Path, count: int) -> dict[str, Any]:
    """Figures of `count` generations in this process: greedy, sampled, by beams and in batches; equal ones give equal answers."""
    model, tokenizer = load_model(str(folder), device="cpu")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "left"
    kinds: list[dict[str, Any]] = [{}, {"do_sample": True, "temperature": 0.8}, {"num_beams": 3}, {"use_cache": False}]
    known: dict[str, list[Any]] = {}
    memory, wrong, draw = [], [], random.Random(0)
    for _ in range(count):
        settings = {"do_sample": False, "max_new_tokens": draw.choice(LENGTHS), **draw.choice(kinds)}
        prompts = PROMPTS[: draw.choice((1, 1, 3, 8))]
        torch.manual_seed(0)
        found = model.generate(**tokenizer(prompts, return_tensors="pt", padding=True), **settings).tolist()
        if known.setdefault(f"{settings} {len(prompts)}", found) != found:
            wrong.append(f"{settings}, {len(prompts)} prompts")
        memory.append(rss(os.getpid()))
    return {"generations": count, "different": len(known), "wrong": wrong, "rss_mb": summary(memory)}


def rss(pid: int) -> float:
    """MB that a process has in memory; of one that ended, 0."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() * 1e-6
    except (OSError, IndexError):
        return 0.0


def summary(memory: list[float]) -> dict[str, float]:
    """MB at the start, in the middle of the second fifth and of the last, and how much the last is above the second."""
    fifth = len(memory) // 5 or 1
    second, last = statistics.median(memory[fifth : 2 * fifth] or memory), statistics.median(memory[-fifth:])
    return {
        "start": round(memory[0], 1),
        "second_fifth": round(second, 1),
        "last_fifth": round(last, 1),
        "growth": round(last / second - 1, 4),
    }


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="a mixture's folder; it is only read")
    parser.add_argument("--minutes", type=float, default=10.0, help="of requests to the server")
    parser.add_argument("--clients", type=int, default=32, help="that ask at once")
    parser.add_argument("--generations", type=int, default=500, help="in process")
    return parser


if __name__ == "__main__":
    sys.exit(main(make_parser().parse_args()))
