"""How often the gate picks a language's own expert.

Shapes: T tokens, K experts per token, E experts, L layers.
"""

from functools import partial

import torch

from model import MoEForCausalLM

from .data.prompts import IGNORED, Example, collate

Choices = dict[str, dict[str, float]]  # language: {"top1": share, "among_top_k": share}


@torch.no_grad()
def own_expert_choices(model: MoEForCausalLM, rows: dict[str, list[Example]], batch_size: int) -> Choices:
    """Per language the share, over all layers and completion tokens, whose first expert (and whose K) is the language's own.

    `rows`: encoded rows of each language. An expert is a language's own if `config.expert_names` calls it so; languages
    without one are left out. Noise is off.
    """
    names = model.config.expert_names or []
    model.eval()
    pad = partial(collate, pad_token_id=model.config.pad_token_id or 0)
    choices: Choices = {}
    for lang, of_lang in rows.items():
        if lang not in names:
            continue
        own, counts = names.index(lang), torch.zeros(3)
        for start in range(0, len(of_lang), batch_size):
            batch = {key: value.to(model.device) for key, value in pad(of_lang[start : start + batch_size]).items()}
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            written = (batch["labels"] != IGNORED).reshape(-1)
            for layer in model.model.layers:
                is_own_TK = layer.mlp.gate.last_routing.experts_TK[written] == own
                counts += torch.tensor([is_own_TK[:, 0].sum(), is_own_TK.sum(), len(is_own_TK)])
        first, among, total = counts.tolist()
        choices[lang] = {"top1": first / total, "among_top_k": among / total}
    return choices


def format_choices(before: Choices, after: Choices) -> str:
    """A table: language, share of tokens whose first expert is its own, share with it among the K, before and after."""

    def cells(choices: dict[str, float]) -> str:
        return f"{choices['top1']:10.1%} {choices['among_top_k']:10.1%}"

    header = f"{'language':<12} {'first':>10} {'in K':>10}   {'first':>10} {'in K':>10}"
    rows = [f"{lang:<12} {cells(before[lang])}   {cells(after[lang])}" for lang in after]
    return "\n".join([f"{'own expert':<12} {'before':>21}   {'after':>21}", header, *rows])
