"""Direct preference optimisation: a completion's reward is how much likelier the policy finds it than the reference did.

    Δ = (log π(chosen) - log π_ref(chosen)) - (log π(rejected) - log π_ref(rejected))        sums over the completion's tokens
    sigmoid    -(1 - ε) log σ(β Δ) - ε log σ(-β Δ)      Rafailov et al. 2023, arXiv:2305.18290; ε = label smoothing, their section on noise
    ipo        (Δ' - 1 / 2β)²                           Azar et al. 2023, arXiv:2310.12036; Δ' of means over tokens, as its authors run it
    + α · mean over the chosen tokens of -log π         Pang et al. 2024, arXiv:2404.19733: α = `--sft-weight`

The reference is the model before the first step, so its log-probabilities are computed once, then, and kept in the workspace: no second
model in memory, no second forward pass in a step, and the same values after a resume.

Shapes: B pairs, S sequence. A batch holds the B chosen completions, then the B rejected ones.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from tqdm import tqdm

from .callbacks import NotFinite
from .data.prompts import IGNORED, collate
from .loss import losses_for_logits
from .trainer import PairTrainer

LOSSES = ("sigmoid", "ipo")
REFERENCE = "reference.safetensors"

Row = dict[str, Any]  # the example of the chosen completion; that of the `rejected` one; `reference`: log-probabilities of both


@dataclass(frozen=True)
class PreferenceLoss:
    beta: float
    loss: str = "sigmoid"
    label_smoothing: float = 0.0
    sft_weight: float = 0.0

    def __call__(self, policy_2B: Tensor, reference_2B: Tensor, tokens_2B: Tensor) -> Tensor:
        """The loss of each pair [B], from summed log-probabilities and the completions' numbers of tokens."""
        ratios_2B = policy_2B - reference_2B
        if self.loss == "ipo":
            chosen_B, rejected_B = (ratios_2B / tokens_2B).chunk(2)
            losses_B = (chosen_B - rejected_B - 1 / (2 * self.beta)).square()
        else:
            chosen_B, rejected_B = (self.beta * ratios_2B).chunk(2)
            margin_B = chosen_B - rejected_B
            losses_B = -(1 - self.label_smoothing) * logsigmoid(margin_B) - self.label_smoothing * logsigmoid(-margin_B)
        return losses_B - self.sft_weight * (policy_2B / tokens_2B).chunk(2)[0]


def log_probs(model: nn.Module, batch: dict[str, Tensor], *, all_labelled: bool = False) -> Tensor:
    """log π of each completion [2B] in fp32: the sum over its tokens, EOS included, each given all before it.

    By the labels a mixture whose router is `sequence` knows the prompt, which chooses the expert. `all_labelled`: see `losses_for_logits`.
    """
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    with losses_for_logits(model, batch["labels"], all_labelled=all_labelled):
        losses_2BS: Tensor = model(**inputs, use_cache=False).logits
    return -losses_2BS.sum(dim=1)


def planned_preference_loss(model: nn.Module, batch: dict[str, Tensor], loss: PreferenceLoss) -> Tensor:
    """The loss of a plan's batch [2B, S]."""
    policy_2B = log_probs(model, batch, all_labelled=True)
    return loss(policy_2B, torch.zeros_like(policy_2B), torch.ones_like(policy_2B)).sum()


def count_tokens(batch: dict[str, Tensor]) -> Tensor:
    """Tokens of each completion [2B]."""
    return (batch["labels"] != IGNORED).sum(dim=1)


def longer_side(row: Row) -> int:
    """Tokens of the longer one of a pair's two sequences."""
    return max(len(row["input_ids"]), len(row["rejected"]["input_ids"]))


def collate_preferences(rows: Sequence[Row], pad_token_id: int) -> dict[str, Tensor]:
    """A batch [2B, S], with `reference` [2B] where the rows have it."""
    batch = collate([*rows, *(row["rejected"] for row in rows)], pad_token_id)
    if "reference" in rows[0]:
        batch["reference"] = torch.tensor([row["reference"] for row in rows]).T.flatten()
    return batch


class PreferenceTrainer(PairTrainer):
    """A PairTrainer over `Row`s; its data collator is `collate_preferences`.

    Log entries have TRL's names: `rewards/chosen`, `rewards/rejected` (β times the log-ratio), `rewards/margins` (their difference),
    `rewards/accuracies` (share of pairs with a positive margin), `logps/chosen`, `logps/rejected`; those of an evaluation begin with
    `eval_`.
    """

    since_log = (*PairTrainer.since_log, "_seen")

    def __init__(self, *args: Any, preference_loss: PreferenceLoss, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.preference_loss: PreferenceLoss = preference_loss
        self._seen: dict[bool, list[Tensor]] = {True: [], False: []}  # what `measure` takes, while training or not

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's; before the first step, or a resume, the rows get their reference log-probabilities."""
        path = Path(str(self.args.output_dir)) / REFERENCE
        rows: Any = {"train": self.train_dataset, "valid": self.eval_dataset}
        if not path.is_file():
            kept = {split: self.score(of_split, f"reference, {split}") for split, of_split in rows.items()}
            if self.is_world_process_zero():
                temporary = path.with_name(f".{path.name}.{os.getpid()}")
                save_file(kept, temporary)
                temporary.replace(path)
            self.accelerator.wait_for_everyone()
        for split, values in load_file(path).items():
            for row, reference in zip(rows[split], values.tolist(), strict=True):
                row["reference"] = reference
        return super().train(*args, **kwargs)

    @torch.no_grad()
    def score(self, rows: list[Row], title: str) -> Tensor:
        """Log-probabilities [rows, 2] of each row's chosen and rejected completion under the model as it is, on the CPU.

        `NotFinite` if one is NaN or infinite.
        """
        model: Any = self.model
        model.eval()
        scores = []
        for batch in tqdm(self.get_eval_dataloader(rows), desc=title, unit="batch", disable=None if self.is_world_process_zero() else True):
            with self.compute_loss_context_manager(), self.accelerator.autocast():
                scores.append(log_probs(model, self._prepare_inputs(batch)).view(2, -1).T.cpu())
        in_turn = [of_one for of_all in zip(*self._of_all_processes(scores), strict=True) for of_one in of_all]
        of_rows = torch.cat(in_turn)[: len(rows)].contiguous()
        if not of_rows.isfinite().all():
            raise NotFinite(f"a log-probability is not finite ({title}): the model computes no probabilities")
        return of_rows

    def _of_all_processes(self, values: list[Tensor]) -> list[list[Tensor]]:
        """The list of each process."""
        gathered: list[list[Tensor]] = gather_object([values])
        return gathered

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        """Pairs of a whole step, over which the loss is a mean, however they are spread over micro-batches and processes."""
        pairs = torch.stack([(count_tokens(batch) > 0).sum() // 2 for batch in batch_samples]).sum()
        return self.accelerator.gather(pairs.to(device)).sum()

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        tokens_2B = count_tokens(inputs)
        policy_2B, reference_2B, tokens_2B = (x[tokens_2B > 0] for x in (log_probs(model, inputs), inputs["reference"], tokens_2B))
        losses_B = self.preference_loss(policy_2B, reference_2B, tokens_2B)
        self._seen[model.training].append(torch.stack([policy_2B.detach(), reference_2B]).view(2, 2, -1).movedim(-1, 0).cpu())
        # the mean over the step's pairs, once the processes' gradients have been averaged
        loss = losses_B.sum() / num_items_in_batch * self.accelerator.num_processes
        return (loss, {}) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        evaluated = "eval_loss" in logs
        if evaluated or "loss" in logs:
            prefix = "eval_" if evaluated else ""
            seen, self._seen[not evaluated] = self._seen[not evaluated], []
            pairs = torch.cat([pairs for of_one in self._of_all_processes(seen) for pairs in of_one])
            logs |= {f"{prefix}{name}": value for name, value in self.measure(pairs).items()}
        super().log(logs, *args, **kwargs)

    def measure(self, pairs: Tensor) -> dict[str, float]:
        """Means over pairs [pairs, policy or reference, chosen or rejected] of log-probabilities."""
        policy, reference = pairs.unbind(1)
        rewards = self.preference_loss.beta * (policy - reference)
        margins = rewards[:, 0] - rewards[:, 1]
        means = {"rewards/chosen": rewards[:, 0], "rewards/rejected": rewards[:, 1], "rewards/margins": margins}
        means |= {"rewards/accuracies": margins > 0, "logps/chosen": policy[:, 0], "logps/rejected": policy[:, 1]}
        return {name: values.double().mean().item() for name, values in means.items()}
