"""The model of a card beside what was measured on it: `python -m benchmarks.compare_model MODEL.json LAYER.json`.

MODEL.json is from `python -m benchmarks.a10g --card NAME --json FILE`, LAYER.json from `python -m benchmarks.gpu_layer`. Measured is the
median of our CUDA graph (device time, as the model's is) under uniform routing, or of the plain calls where there is no graph.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# The model's name of an operation: the benchmark's operation, and the implementation's name there.
SAME = {
    "forward": ("forward", "ours"),
    "training step": ("step", "ours"),
    "training step, lora layout": ("step", "ours, lora layout"),
    "router with noise": ("router", "ours"),  # the benchmark's gate draws noise; the model's "router" does not
    "router step": ("router step", "ours"),
}


def compare(model: dict[str, Any], layer: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each operation and size that both have: milliseconds, and measured over modelled."""
    measured = {(row["operation"], row["tokens"], row["name"]): row["median_ms"] for row in layer["rows"] if row["routing"] == "uniform"}
    rows = []
    for row in model["rows"]:
        operation, name = SAME.get(row["operation"], ("", ""))
        plain, graph = (measured.get((operation, row["tokens"], name + ending)) for ending in ("", ", graph"))
        found = graph or plain
        if found:
            facts = {"operation": row["operation"], "tokens": row["tokens"], "model_ms": row["model_ms"], "measured_ms": found}
            rows.append({**facts, "measured_over_model": found / row["model_ms"], "graph": graph is not None})
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if len(arguments) != 2:
        print("usage: python -m benchmarks.compare_model MODEL.json LAYER.json", file=sys.stderr)
        return 2
    model, layer = (json.loads(Path(argument).read_text()) for argument in arguments)
    card = layer["hardware"].get("name", "no GPU")
    modelled = model["card"]["name"]
    if modelled.upper() not in card.upper():
        print(f"benchmarks.compare_model: the model is of {modelled}, the measurement of {card}", file=sys.stderr)
        return 2
    for row in compare(model, layer):
        times = f"model {row['model_ms']:9.4f} ms  measured {row['measured_ms']:9.4f} ms  measured/model {row['measured_over_model']:5.2f}"
        print(f"{row['operation']:28} T = {row['tokens']:5}  {times}{'' if row['graph'] else '  (launches included)'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
