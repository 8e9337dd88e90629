"""What the gates of a composed mixture do before any training: `gate.json`, and a short table of it.

Shapes: L layers, E experts.
"""

import math
from collections import Counter
from typing import Any

from .gate_making import Gates, SentText
from .gates import DEGENERATE, condition_numbers, cosines

GATE = "gate.json"
_SHOWN = 8  # misrouted texts that are printed
_LETTERS = 40  # of a text that are printed


def describe(gates: Gates, mode: str, names: list[str]) -> dict[str, Any]:
    """Arrays over layers: of each block's gate the `cosines` [L][E][E] between experts and the `condition_numbers` [L] (None: infinite);
    of the FFN's gate the `first_choices` [L][E][E] of each expert's texts (None: there are none), and of each single text.
    """
    blocks = {
        block: {"cosines": cosines(gate_LED).tolist(), "condition_numbers": [_finite(value) for value in condition_numbers(gate_LED)]}
        for block, gate_LED in gates.blocks.items()
    }
    choices = gates.first_choices_LEE
    return {
        "gate_mode": mode,
        "experts": names,
        "degenerate_above": DEGENERATE,
        "blocks": blocks,
        "first_choices": None if choices is None else choices.tolist(),
        "texts": [_describe_text(sent, names) for sent in gates.texts],
    }


def _describe_text(sent: SentText, names: list[str]) -> dict[str, Any]:
    """In each layer the experts that are first for some of a text's tokens, with their shares, the largest first; `misrouted_layers`: where
    a negative prompt has its expert as first choice of most tokens, and any other text has not.
    """
    own, layers = names[sent.expert], []
    for shares_E in sent.first_choices_LE.tolist():
        ranked = sorted(zip(names, shares_E, strict=True), key=lambda pair: -pair[1])
        layers.append({name: share for name, share in ranked if share})
    misrouted = [index for index, layer in enumerate(layers) if (layer.get(own) == max(layer.values())) == (sent.kind == "negative")]
    return {"expert": own, "kind": sent.kind, "text": sent.text, "first_choices": layers, "misrouted_layers": misrouted}


def degenerate_layers(report: dict[str, Any]) -> list[int]:
    """The layers whose gate, of any block, hardly tells two experts apart."""
    numbers = zip(*(block["condition_numbers"] for block in report["blocks"].values()), strict=True)
    return [layer for layer, values in enumerate(numbers) if any(value is None or value > DEGENERATE for value in values)]


def some_layers(chosen: list[int], count: int) -> str:
    """Names some of `count` layers, runs of them as first-last: "layers 0-3, 7"."""
    if len(chosen) == 1:
        return f"layer {chosen[0]}"
    if len(chosen) == count:
        return f"all {count} layers"
    starts = [layer for layer in chosen if layer - 1 not in chosen]
    ends = [layer for layer in chosen if layer + 1 not in chosen]
    return "layers " + ", ".join(f"{start}-{end}" if start < end else str(start) for start, end in zip(starts, ends, strict=True))


def format_report(report: dict[str, Any]) -> str:
    """Where the gate sends each expert's texts, in per cent of their tokens (mean over layers, least own share); the texts that it sends
    elsewhere; its worst figures.
    """
    lines = []
    if report["first_choices"] is not None:
        lines += _choices_table(report["experts"], report["first_choices"])
        lines += _misrouted(report["texts"])
    for block, figures in report["blocks"].items():
        pairs = [(cosine, layer) for layer, rows in enumerate(figures["cosines"]) for e, row in enumerate(rows) for cosine in row[:e]]
        worst = max(range(len(figures["condition_numbers"])), key=lambda layer: figures["condition_numbers"][layer] or math.inf)
        number = figures["condition_numbers"][worst]
        text = f"gate of {block}: condition number up to {'infinity' if number is None else format(number, '.3g')} (layer {worst})"
        if pairs:
            (low, _), (high, where) = min(pairs), max(pairs)
            text += f"; cosine between two experts {low:.2f} to {high:.2f} (layer {where})"
        lines.append(text)
    if report["gate_mode"] == "hidden" and 0 in degenerate_layers(report):
        lines.append("layer 0: `hidden` has the embedding of each prompt's last token there, and nothing else; `router_input` has more")
    return "\n".join(lines)


def _choices_table(names: list[str], choices: list[list[list[float]]]) -> list[str]:
    width = max(8, *(len(name) + 2 for name in names))
    title = "first choice, %"
    first = max(len(title), *map(len, names)) + 2
    lines = [f"{title:<{first}}" + "".join(f"{name:>{width}}" for name in names) + f"{'own, least':>16}"]
    for e, name in enumerate(names):
        shares = [sum(layer[e][f] for layer in choices) / len(choices) for f in range(len(names))]
        least, where = min((layer[e][e], index) for index, layer in enumerate(choices))
        row = "".join(f"{100 * share:>{width}.1f}" for share in shares)
        lines.append(f"{name:<{first}}{row}{100 * least:>7.1f} (layer {where})")
    return lines


def _misrouted(texts: list[dict[str, Any]]) -> list[str]:
    """The texts that go where they should not in at least half of the layers."""
    astray = [text for text in texts if 2 * len(text["misrouted_layers"]) >= len(text["first_choices"])]
    count = f"{len(astray)} of {len(texts)} texts"
    lines = [f"{count} go where they should not in half of the layers or more" + (":" if astray else "")]
    for text in astray[:_SHOWN]:
        wrong = text["misrouted_layers"]
        first = Counter(next(iter(text["first_choices"][layer])) for layer in wrong).most_common(1)[0][0]
        shown = repr(text["text"] if len(text["text"]) <= _LETTERS else text["text"][: _LETTERS - 3] + "...")
        what = f"{text['kind']} {'prompt' if text['kind'] != 'row' else ''}".strip()
        where = "goes to it all the same" if text["kind"] == "negative" else f"goes to {first}"
        lines.append(f"  {text['expert']}: {what} {shown} {where}, in {len(wrong)} of {len(text['first_choices'])} layers")
    if len(astray) > _SHOWN:
        lines.append(f"  and {len(astray) - _SHOWN} more, in {GATE}")
    return lines


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None
