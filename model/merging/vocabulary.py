"""Models with different vocabularies: one tokenizer for the output, and every embedding matrix brought into its order.

As in mergekit's `tokenizer_source`: a token that a model lacks gets the base's row, or else the mean over the models that have it.
V tokens of the output.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..sources import split_source
from ..tokenizer import read_tokenizer
from .sources import SourceModel

_SHOWN = 5  # tokens that a message names


@dataclass(frozen=True)
class Alignment:
    """The output's tokenizer, and for each model the row [V] of each of its tokens in that model, -1 where it has none."""

    tokenizer: PreTrainedTokenizerBase
    sources: Sequence[SourceModel]  # the base first, if there is one
    rows: Sequence[Tensor]
    has_base: bool

    @property
    def size(self) -> int:
        return len(self.rows[0])

    def tensor(self, source: SourceModel, name: str, dtype: torch.dtype) -> Tensor:
        """An embedding matrix of `source` with a row for each token of the output."""
        rows_V = self.rows[self.sources.index(source)]
        weight = source.tensor(name, dtype)
        aligned = weight[rows_V.clamp(min=0)]
        for token in (rows_V < 0).nonzero().flatten().tolist():
            aligned[token] = self._fallback(token, name, dtype)
        return aligned

    def _fallback(self, token: int, name: str, dtype: torch.dtype) -> Tensor:
        holders = [(source, int(rows_V[token])) for source, rows_V in zip(self.sources, self.rows, strict=True) if rows_V[token] >= 0]
        if self.has_base and self.rows[0][token] >= 0:
            holders = holders[:1]
        if not holders:
            raise ValueError(f"no model has the token {self.tokenizer.convert_ids_to_tokens(token)!r} of the output's tokenizer")
        return torch.stack([source.stored(name)[row].to(dtype) for source, row in holders]).mean(dim=0)


def align(choice: str, sources: Mapping[str, SourceModel], base: str | None, beside: Path) -> Alignment:
    """The alignment for `tokenizer_source`: `base`, `union`, or a model; the base is the first of `sources`.

    ValueError or FileNotFoundError if it cannot be made.
    """
    if choice == "base" and base is None:
        raise ValueError("tokenizer_source is 'base', but there is no base_model; name a model, or union")
    tokenizers = {name: read_tokenizer(source.folder) for name, source in sources.items()}
    vocabularies = [tokenizer.get_vocab() for tokenizer in tokenizers.values()]
    if choice == "union":
        tokenizer = _unite(list(tokenizers.values()))
    elif choice == "base":
        tokenizer = tokenizers[str(base)]
    else:
        tokenizer = tokenizers[choice] if choice in tokenizers else read_tokenizer(split_source(choice, beside)[0])
    tokens = tokenizer.get_vocab()
    rows = []
    for vocabulary in vocabularies:
        rows_V = torch.full((max(tokens.values()) + 1,), -1)
        for token, index in tokens.items():
            rows_V[index] = vocabulary.get(token, -1)
        rows.append(rows_V)
    return Alignment(tokenizer, list(sources.values()), rows, base is not None)


def _unite(tokenizers: Sequence[Any]) -> PreTrainedTokenizerBase:
    """The first tokenizer with the tokens that were added to the others; ValueError if they differ in more than added tokens."""
    union, *others = tokenizers
    for other in others:
        known = union.get_vocab()
        extra = sorted((index, token) for token, index in other.get_vocab().items() if token not in known)
        if inner := [token for index, token in extra if index not in other.added_tokens_decoder]:
            shown = ", ".join(map(repr, inner[:_SHOWN]))
            raise ValueError(
                f"{other.name_or_path} has {len(inner)} tokens that {union.name_or_path} lacks ({shown}, ...); a union takes over added "
                "tokens, but for these the tokenizers' rules would have to be united; tokenizer_source: base keeps one vocabulary"
            )
        union.add_tokens([other.added_tokens_decoder[index] for index, _ in extra])
    return union
