"""How much the choice of an expert says about what a token is: one figure, and the shares behind it.

C classes (languages, or kinds of token), E experts, L layers.
"""

from typing import Any

import numpy as np

from train.routing import means

from .tables import aligned_text, lang_title
from .token_classes import CLASSES


def normalised_mutual_information(joint_CE: Any) -> float | None:
    """Mutual information of class and expert over the mean of their entropies: 0 if independent, 1 if one tells the other.

    `joint_CE` are counts or shares. None where neither varies. Vinh, Epps and Bailey 2010 (JMLR 11), NMI_sum; scikit-learn's default.
    """
    joint_CE = np.asarray(joint_CE, dtype=float)
    joint_CE = joint_CE / joint_CE.sum()
    class_C, expert_E = _entropy(joint_CE.sum(1)), _entropy(joint_CE.sum(0))
    if class_C + expert_E == 0:
        return None
    return max(0.0, 2 * (class_C + expert_E - _entropy(joint_CE)) / (class_C + expert_E))


def _entropy(shares: np.ndarray) -> float:
    present = shares[shares > 0]
    return float(-(present * np.log2(present)).sum())


def by_layer(joint_LCE: list[Any]) -> list[float] | None:
    """The figure of each layer; None if a layer has none."""
    found = [normalised_mutual_information(joint_CE) for joint_CE in joint_LCE]
    return None if None in found else [value for value in found if value is not None]


def language_joint(languages: dict[str, dict[str, Any]]) -> list[Any]:
    """Tokens [L][language][E] by the expert that they put first."""
    return np.stack([row["tokens"] * np.asarray(row["top1"]) for row in languages.values()], axis=1).tolist()


def class_shares(row: dict[str, Any], own: int | None) -> dict[str, dict[str, Any]]:
    """{class: `share` of the tokens, `top1` [E]: their first choices, `own`: the share of the own expert among these}; means over layers.

    `row["by_class"]` as in `train.routing.measure_routing`, by layer or its mean. A class without tokens is left out.
    """
    by_class = np.asarray(row["by_class"], dtype=float)
    joint_CE = by_class.mean(0) if by_class.ndim == 3 else by_class
    found: dict[str, dict[str, Any]] = {}
    for name, experts_E in zip(CLASSES, joint_CE, strict=True):
        if share := float(experts_E.sum()):
            first = (experts_E / share).tolist()
            found[name] = {"share": share, "top1": first, "own": None if own is None else first[own]}
    return found


def class_table(languages: dict[str, dict[str, Any]], owns: dict[str, int | None]) -> str:
    """Per cent of the tokens of each class whose first choice is the language's own expert, and the NMI of class and expert."""
    shares = {lang: class_shares(row, owns[lang]) for lang, row in languages.items() if owns[lang] is not None}
    head = ["own expert first, %", *map(lang_title, shares)]
    rows = [[(name, ""), *((f"{100 * own[name]['own']:.1f}" if name in own else "-", "") for own in shares.values())] for name in CLASSES]
    figures = [means(languages[lang]["nmi_class"]) for lang in shares]
    rows.append([("NMI, class and expert", ""), *(("-" if value is None else f"{value:.3f}", "") for value in figures)])
    return aligned_text(head, rows) if shares else ""
