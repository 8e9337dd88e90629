"""What the embedded base reads, and the loss that keeps a document's language in view.

In the shares of `DOCUMENTS`:

    described a comment (in Python a docstring) that names the language and describes the program, then the program
    code      a comment that names the language, then a program
    page      Markdown: a heading that names the language, then a heading and lines of prose for each of some programs, no code

The pages are what makes `#` at the start of a line say nothing of the language: in code alone it means C++ (`#include`), and a base
without them answered the prompt template, which has headings, in C++ whatever was asked for. Pages that did not name their language
left the prompt's own tokens without one, and the gate astray where a completion starts (docs/log.md has both).

The header is what a path, a shebang or a code fence is in the wild. A gate can only read what the frozen attention brings to its
token, and a base of this size looks at the last few tokens: from `i < n; i++)` nobody can tell Java from C++. So training has a
second loss, `HeaderTrainer`'s: every layer has to keep the language of its document in view.
"""

import random
from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from model.languages import LANGUAGES, get_language

from .data.pairs import Pair
from .data.prompts import IGNORED, collate
from .trainer import PairTrainer

VOCABULARY = 2048
DOCUMENTS = {"described": 0.85, "code": 0.05, "page": 0.1}
PAGE_SECTIONS = 3  # so that after a second heading there is prose again
HEADER_WEIGHT = 0.2  # at 0.1 a probe reads the language off the gate's inputs for 93 % of the tokens, at 0.2 for 96 % or more (docs/log.md)
HEADER_TOKENS = 6  # BOS, the header and the marks of the next line: from here on the language has been named
# How a program's file says what it is, and how it goes on with a description: Python's docstring, everybody else's comments.
DOCSTRING = ('"""{title}\n', '"""\n')
COMMENTS = ("// {title}\n", "")
PAGE = "# {title}\n"


def train_tokenizer(documents: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `VOCABULARY` entries. It adds no BOS; what encodes rows and prompts does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def make_documents(rows: list[Pair], seed: int) -> list[tuple[str, int]]:
    """One document per row, of a kind drawn by the shares of `DOCUMENTS`, in a random order, and its language."""
    draw = random.Random(seed)
    texts = {lang: [row.text for row in rows if row.lang == lang] for lang in LANGUAGES}
    documents = []
    for row in rows:
        kind = draw.choices(list(DOCUMENTS), list(DOCUMENTS.values()))[0]
        opening, closing = DOCSTRING if row.lang == "python" else COMMENTS
        opening = opening.format(title=get_language(row.lang).title)
        description = ("" if row.lang == "python" else "// ") + row.text + "\n"
        if kind == "page":
            sections = map(_section, [row.text, *draw.choices(texts[row.lang], k=PAGE_SECTIONS - 1)])
            document = PAGE.format(title=get_language(row.lang).title) + "".join(sections)
        else:
            document = opening + (description if kind == "described" else "") + closing + row.code
        documents.append((document, list(LANGUAGES).index(row.lang)))
    draw.shuffle(documents)
    return documents


def _section(text: str) -> str:
    """The title of `title | comment ; comment` as a heading, and a line for each comment."""
    return "### " + text.replace(" | ", "\n").replace(" ; ", "\n") + "\n"


def encode_documents(documents: list[tuple[str, int]], tokenizer: PreTrainedTokenizerFast, max_length: int) -> list[dict[str, Any]]:
    """A training row for each document: BOS document EOS, cut to `max_length`; the labels are the tokens themselves.

    One document a row, not joined into blocks: no attention across documents, and the link from a description to its program
    is learned sooner (docs/log.md).
    """
    encoded = tokenizer([document for document, _ in documents])["input_ids"]
    rows = [[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id][:max_length] for ids in encoded]
    return [{"input_ids": row, "labels": row, "language": language} for row, (_, language) in zip(rows, documents, strict=True)]


class HeaderTrainer(PairTrainer):
    """Adds to the training loss that the input of every FFN names the document's language, in its first coordinates.

    That is the cross entropy of softmax(x[..., :number of languages]), x the normed residual stream that a gate would read,
    averaged over layers and tokens and weighted by `HEADER_WEIGHT`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._inputs: list[Tensor] = []  # of each layer's FFN, [B, S, D]
        model: Any = self.model
        for layer in model.model.layers:
            layer.post_attention_layernorm.register_forward_hook(lambda module, args, output: self._inputs.append(output))

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Any:
        """As Trainer's; also counts the tokens of the whole step, of all processes, over which the second loss is a mean."""
        tokens = torch.stack([_after_header(batch).sum() for batch in batch_samples]).sum()
        self._tokens = self.accelerator.gather(tokens.to(device)).sum()
        return super()._get_num_items_in_batch(batch_samples, device)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:  # type: ignore[override]
        language_B = inputs.pop("language")
        self._inputs.clear()
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if model.training:
            target_BS = language_B[:, None].where(_after_header(inputs), IGNORED)
            named = [cross_entropy(x[..., : len(LANGUAGES)].flatten(0, 1), target_BS.flatten(), reduction="sum") for x in self._inputs]
            processes = self.accelerator.num_processes  # whose gradients will be averaged
            loss = loss + HEADER_WEIGHT * torch.stack(named).mean() * processes / self._tokens.clamp(min=1)  # rows may be all header
        return (loss, outputs) if return_outputs else loss


def _after_header(batch: dict[str, Tensor]) -> Tensor:
    """The tokens [B, S] from which a document's language is to be read."""
    mask_BS = batch["attention_mask"]
    return (mask_BS.cumsum(dim=1) > HEADER_TOKENS) & mask_BS.bool() & (batch["labels"] != IGNORED)


def collate_documents(rows: list[dict[str, Any]], pad_token_id: int) -> dict[str, Tensor]:
    """`collate`'s batch and the rows' `language` [B]."""
    return collate(rows, pad_token_id) | {"language": torch.tensor([row["language"] for row in rows])}
