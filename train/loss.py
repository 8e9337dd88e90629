"""The language model's loss without the logits of a batch.

A completion's loss needs no logits of its prompt, of the padding and of the last token; and those of the rest need not exist at once.
At Mistral's vocabulary 8 rows of 1024 tokens have 1 GiB of logits in fp32, and as much again in their softmax and in their gradient.

A model runs its head and its loss within one forward that autocast, DDP and FSDP wrap as a whole, and in which a mixture adds the losses
of its router. All that stays as it is: `losses_for_logits` gives only the head something else to return.

Shapes: B batch, S sequence, T tokens, D model width, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from .data.prompts import IGNORED

CHUNK = 2**24  # logits that exist at once: 64 MiB in fp32, 524 tokens at V 32000; there chunks of half and twice the size are no faster


def token_losses(hidden_TD: Tensor, head: Any, labels_T: Tensor) -> Tensor:
    """The cross entropy [T] of each token's label in fp32, through `head` in chunks of at most `CHUNK` logits.

    If there are several chunks, the backward pass computes each again.
    """

    def losses(x_TD: Tensor, target_T: Tensor) -> Tensor:
        logits_TV = type(head).forward(head, x_TD)  # head() is `losses_for_logits`'s
        return cross_entropy(logits_TV.float(), target_T, reduction="none")

    rows = max(1, CHUNK // head.weight.shape[0])
    if len(hidden_TD) <= rows:
        return losses(hidden_TD, labels_T)
    chunks = zip(hidden_TD.split(rows), labels_T.split(rows), strict=True)
    return torch.cat([checkpoint(losses, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks])


@contextmanager
def losses_for_logits(model: nn.Module, labels_BS: Tensor, *, all_labelled: bool = False) -> Iterator[None]:
    """Within it the `logits` of `model`, wrapped or not, are the losses [B, S] of what each token predicts, 0 where that has no label.

    `all_labelled`: every token has a label, whatever its value; a plan's have no values.
    The model's `loss` is transformers': their mean over the labelled tokens, or their sum over `num_items_in_batch`. `ValueError` if the
    model changes its logits after the head.
    """
    language_model = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    head: Any = language_model.get_output_embeddings()
    targets_BS = pad(labels_BS[:, 1:], (0, 1), value=IGNORED)
    returned: list[Tensor] = []

    def head_losses(hidden_BSD: Tensor) -> Tensor:
        target_BS = targets_BS.to(hidden_BSD.device)
        if all_labelled:
            returned[:] = [token_losses(hidden_BSD.flatten(0, 1), head, target_BS.flatten()).view_as(target_BS)]
            return returned[0]
        labelled = target_BS != IGNORED
        losses_BS = torch.zeros_like(target_BS, dtype=torch.float32)
        losses_BS[labelled] = token_losses(hidden_BSD[labelled], head, target_BS[labelled])
        returned[:] = [losses_BS]
        return losses_BS

    def loss(logits: Tensor, *args: Any, num_items_in_batch: Any = None, **kwargs: Any) -> Tensor:
        if logits is not returned[0]:
            raise ValueError(f"{type(language_model).__name__} changes its logits after the head; a base that does cannot be trained")
        count = (targets_BS != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        return logits.sum() / torch.as_tensor(count, device=logits.device)

    replaced = ((head, "forward", head_losses), (language_model, "_loss_function", loss))
    before = [vars(module).get(name) for module, name, _ in replaced]
    for module, name, function in replaced:
        setattr(module, name, function)
    try:
        yield
    finally:
        for (module, name, _), own in zip(replaced, before, strict=True):
            delattr(module, name)
            if own is not None:
                setattr(module, name, own)
