"""Models with different vocabularies: one tokenizer for the output, and every embedding matrix brought into its order.

As in mergekit's `tokenizer_source`: a token that a model lacks gets the base's row, or else the mean over the models that have it, or
zeros if none has. V tokens of the output, D model width, M models, N tokens that a model lacks.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..checkpoint import some
from ..sources import split_source
from ..tokenizer import read_tokenizer
from .parallel import Rows, Some
from .sources import EMBEDDINGS, SourceModel


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

    def aligned(self, source: SourceModel, name: str, dtype: torch.dtype) -> Rows:
        """An embedding matrix of `source` with a row for each token of the output, any of these at a time."""
        own, rows_V = source.rows(name, dtype), self.rows[self.sources.index(source)]
        is_lacking_V = rows_V < 0
        place_V = is_lacking_V.cumsum(dim=0) - 1
        others_ND = self._fallback(is_lacking_V.nonzero().flatten(), name, dtype, source.shape(name)[1:])

        def read(part: Some) -> Tensor:
            found, is_lacking = own(rows_V[part].clamp(min=0)), is_lacking_V[part]
            found[is_lacking] = others_ND[place_V[part][is_lacking]]
            return found

        return read

    def _fallback(self, tokens_N: Tensor, name: str, dtype: torch.dtype, shape: torch.Size) -> Tensor:
        """The rows for tokens that a model lacks, which are gathered from the other models."""
        rows_MN = torch.stack(list(self.rows))[:, tokens_N]
        is_used_MN = rows_MN >= 0
        if self.has_base:
            is_used_MN[1:] &= ~is_used_MN[0]
        total = torch.zeros(len(tokens_N), *shape, dtype=dtype)
        for source, rows_N, is_used_N in zip(self.sources, rows_MN, is_used_MN, strict=True):
            if is_used_N.any():
                total[is_used_N] += source.some_rows(name, rows_N[is_used_N], dtype)
        return total / is_used_MN.sum(dim=0).clamp(min=1)[:, None].to(dtype)


def align(choice: str, sources: Mapping[str, SourceModel], base: str | None, beside: Path) -> Alignment:
    """The alignment for `tokenizer_source`: `base`, `union`, or a model; the base is the first of `sources`.

    ValueError or FileNotFoundError if it cannot be made.
    """
    tokenizers = {name: read_tokenizer(source.folder) for name, source in sources.items()}
    vocabularies = [_with_rows(tokenizers[name], source) for name, source in sources.items()]
    if choice == "union":
        tokenizer = _unite(list(tokenizers.values()), vocabularies)
    elif choice == "base":
        tokenizer = next(iter(tokenizers.values()))  # the base's, or the first model's, as in mergekit
    else:
        tokenizer = tokenizers[choice] if choice in tokenizers else read_tokenizer(split_source(choice, beside)[0])
    tokens = tokenizer.get_vocab()
    rows = []
    for vocabulary in vocabularies:
        rows_V = torch.full((max(tokens.values()) + 1,), -1)
        for token, index in tokens.items():
            rows_V[index] = vocabulary.get(token, -1)
        rows.append(rows_V)
    if rowless := sorted((token for token, index in tokens.items() if all(rows_V[index] < 0 for rows_V in rows)), key=tokens.__getitem__):
        print(f"no model has a row for {_some(rowless)} of the output's tokenizer: they get zeros", file=sys.stderr)
    return Alignment(tokenizer, list(sources.values()), rows, base is not None)


def _with_rows(tokenizer: PreTrainedTokenizerBase, source: SourceModel) -> dict[str, int]:
    """The tokens of a model that its embeddings have a row for: a pad token, say, is often added without one."""
    count, vocabulary = source.shape(EMBEDDINGS)[0], tokenizer.get_vocab()
    if beyond := sorted((token for token, index in vocabulary.items() if index >= count), key=vocabulary.__getitem__):
        print(f"{source.folder} has {count} rows of embeddings and none for {_some(beyond)}, taken as absent", file=sys.stderr)
    return {token: index for token, index in vocabulary.items() if index < count}


def _unite(tokenizers: Sequence[Any], vocabularies: Sequence[Mapping[str, int]]) -> PreTrainedTokenizerBase:
    """The first tokenizer with the tokens that were added to the others; ValueError if they differ in more than added tokens."""
    union, *others = tokenizers
    for other, vocabulary in zip(others, vocabularies[1:], strict=True):
        known = union.get_vocab()
        extra = sorted((index, token) for token, index in vocabulary.items() if token not in known)
        if inner := [token for index, token in extra if index not in other.added_tokens_decoder]:
            raise ValueError(
                f"{other.name_or_path} has {len(inner)} tokens that {union.name_or_path} lacks ({_some(inner)}); a union takes over added "
                "tokens, but for these the tokenizers' rules would have to be united; tokenizer_source: base keeps one vocabulary"
            )
        union.add_tokens([other.added_tokens_decoder[index] for index, _ in extra])
    return union


def _some(tokens: Sequence[str]) -> str:
    return some([repr(token) for token in tokens])
