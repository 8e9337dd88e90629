"""Programs with each token in the colour of its expert: a page of its own, and the same as a part of the report. Nothing is fetched.

Without JavaScript the page shows the mean over layers; with it a layer can be chosen, and a tap on a token shows its weights.
Colours are Okabe and Ito's (2008), which colour-blind readers can tell apart; each expert also has its own underline, for grey print.
"""

import json
from collections import Counter
from html import escape
from pathlib import Path
from typing import Any

from .html_parts import page
from .tables import kind_title, lang_title

SLOTS = 7  # experts with a colour of their own: those with the most weight; the rest share one
STYLE, SCRIPT = (Path(__file__).with_name(f"routing.{suffix}") for suffix in ("css", "js"))


def programs_page(shown: dict[str, Any]) -> str:
    """The page of `programs.json`: {"model", "experts", "max_new_tokens", "programs"}."""
    return page("Experts, token by token", f"<h1>Experts, token by token</h1>{programs_section(shown)}")


def programs_section(shown: dict[str, Any], behind: str = "") -> str:
    """Style, legend, control, programs and script. `behind`: links to the run that they are from."""
    programs, names = shown["programs"], [lang_title(name) for name in shown["experts"]]
    layers = next((len(program["choices"][0]) for program in programs if program["choices"]), 0)
    slots = _slots(programs, len(names))
    note = (
        f"Programs that the mixture {shown['model']} wrote itself: greedy decoding, at most {shown['max_new_tokens']} new tokens, "
        "the first points of each language. A token has the colour of the expert with the most weight, in the mean of all "
        f"{layers} layers or in the one chosen. Hover or tap to read the weights."
    )
    runs = f" <span class='behind'>Run: {behind}.</span>" if behind else ""
    options = "".join(f"<option value='{layer}'>layer {layer}</option>" for layer in range(layers))
    control = f"<label class='layer' hidden>Show <select><option value=''>mean of {layers} layers</option>{options}</select></label>"
    data = json.dumps({"names": names, "slots": slots, "programs": [program["choices"] for program in programs]}, separators=(",", ":"))
    body = "".join(_program(program, names, slots) for program in programs)
    return (
        f"<section class='routed'><style>{STYLE.read_text(encoding='utf-8')}</style><p>{escape(note)}{runs}</p>"
        f"<div class='bar'>{_legend(names, slots)}{control}</div>{body}"
        f"<script type='application/json'>{data.replace('<', chr(92) + 'u003c')}</script>"
        f"<script>{SCRIPT.read_text(encoding='utf-8')}</script></section>"
    )


def _slots(programs: list[dict[str, Any]], experts: int) -> list[int]:
    """The colour of each expert."""
    weight: Counter[int] = Counter(dict.fromkeys(range(experts), 0))
    for choices in (layer for program in programs for token in program["choices"] for layer in token):
        for expert, share in zip(choices[::2], choices[1::2], strict=True):
            weight[expert] += share
    own = sorted(expert for expert, _ in weight.most_common(SLOTS))
    return [own.index(expert) if expert in own else SLOTS for expert in range(experts)]


def _legend(names: list[str], slots: list[int]) -> str:
    keys = {slot: name if slot < SLOTS else "other experts" for name, slot in zip(names, slots, strict=True)}
    return "<div class='legend'>" + "".join(f"<span><b class='x{slot}'>{escape(keys[slot])}</b></span>" for slot in sorted(keys)) + "</div>"


def _program(program: dict[str, Any], names: list[str], slots: list[int]) -> str:
    tokens = "".join(_token(piece, choices, names, slots) for piece, choices in zip(program["pieces"], program["choices"], strict=True))
    tokens = tokens or "<span class='faint'>(empty)</span>"
    head = f"<b>{escape(lang_title(program['lang']))}</b> {escape(program['text'])}"
    origin = f"<span class='faint'>({escape(program['id'])}, {escape(kind_title(program['kind']).lower())})</span>"
    return f"<figure class='program'><figcaption>{head} {origin}</figcaption><pre>{tokens}</pre><output>&nbsp;</output></figure>"


def _token(piece: str, choices: list[list[int]], names: list[str], slots: list[int]) -> str:
    weights = mean_weights(choices)
    title = ", ".join(f"{names[expert]} {weight:.0f} %" for expert, weight in weights)
    return f"<span class='x{slots[weights[0][0]]}' title='{escape(title, quote=True)}'>{escape(piece)}</span>"


def mean_weights(choices: list[list[int]]) -> list[tuple[int, float]]:
    """(expert, per cent) by weight in the mean of a token's layers; ties to the lowest expert."""
    total: Counter[int] = Counter()
    for layer in choices:
        for expert, share in zip(layer[::2], layer[1::2], strict=True):
            total[expert] += share
    return sorted(((expert, share / len(choices)) for expert, share in total.items()), key=lambda pair: (-pair[1], pair[0]))
