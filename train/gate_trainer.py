"""The trainer of `python -m train.gate`: the routing noise and its schedule, the language-label loss, two learning rates, reports.

Shapes: B batch, S sequence, T = B·S tokens, E experts.
"""

import argparse
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .data.prompts import IGNORED, Example, collate
from .gate_losses import label_loss, router_losses
from .routing import format_line, measure_languages, scalars
from .trained_parts import GATE
from .trainer import PairTrainer

NOISES = ("constant", "linear", "cosine", "none")


def noise_scale(schedule: str, progress: float) -> float:
    """What multiplies the routing noise at a share `progress` (0..1) of the steps: 1, a line or half a cosine from 1 to 0, or 0."""
    if schedule == "linear":
        return 1 - progress
    if schedule == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    return 0.0 if schedule == "none" else 1.0


def collate_labelled(examples: Sequence[Example], pad_token_id: int) -> dict[str, Tensor]:
    """`collate` and `own_expert` [B]: the index of each row's own expert, IGNORED if it has none."""
    return {**collate(examples, pad_token_id), "own_expert": torch.tensor([example["own_expert"][0] for example in examples])}


class GateTrainer(PairTrainer):
    """Trains what has a gradient of a `MoEForCausalLM`; at each evaluation it says what the gate chose for each language.

    Log entries have beside `loss` its parts, unweighted, as means over the steps since the last one: `language_model_loss`, and the
    router's that its kind has, `importance_loss`, `load_loss`, `balance_loss`, `z_loss`, and with `--label-loss` `label_loss`.

    `flags` are the command's; `routing_rows` are the rows of each language that are looked at, `names` what the experts are called.
    """

    since_log = (*PairTrainer.since_log, "_parts")

    def __init__(self, *args: Any, flags: argparse.Namespace, routing_rows: dict[str, list[Example]], names: list[str], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.flags, self.routing_rows, self.names = flags, routing_rows, names
        self._step, self._micro_step = -1, 0
        self._parts: list[dict[str, Tensor]] = []  # of the loss, of each micro-batch since the last log entry, and its share of a step

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """The noise is a function of the step and the batch's number within it alone, so a resumed run draws that of an unbroken one.

        The batch of each of N processes counts as one micro-step of N, so N processes draw the noise of one that accumulates.
        """
        step = self.state.global_step
        if step != self._step:  # the last step of an epoch may have fewer micro-steps
            self._step, self._micro_step = step, 0
        turn = step * self.args.gradient_accumulation_steps + self._micro_step
        self._micro_step += 1
        mixture: Any = self.model
        mixture.set_router_step(turn * self.args.world_size + self.args.process_index)
        mixture.set_router_noise(noise_scale(self.flags.noise, step / self.state.max_steps))
        return super().training_step(*args, **kwargs)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """The model's loss; while training with the router's own losses, and `--label-loss` times the language-label loss per token."""
        own_expert_B = inputs.pop("own_expert")
        if model.training:
            inputs["output_router_logits"] = True
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training:
            share = (inputs["labels"][:, 1:] != IGNORED).sum() / num_items_in_batch  # of the step's tokens, over which losses are means
            mixture: Any = self.model
            parts = {name: share * value for name, value in router_losses(mixture, inputs).items()}
            parts |= {"share": share, "language_model_loss": outputs.logits.detach().sum() / num_items_in_batch}
            if self.flags.label_loss:
                processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1  # as Trainer scales the rest
                of_labels = label_loss(outputs.router_logits, own_expert_B, inputs["labels"]).to(loss.device) / num_items_in_batch
                loss = loss + self.flags.label_loss * processes * of_labels
                parts["label_loss"] = of_labels.detach()
            self._parts.append(parts)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            sums = {name: torch.stack([parts[name].to(self.args.device) for parts in self._parts]).sum() for name in self._parts[0]}
            self._parts.clear()
            of_all: dict[str, Any] = {name: self.accelerator.reduce(value, "sum") for name, value in sums.items()}
            steps = of_all.pop("share")  # the shares of a step's micro-batches are 1
            logs |= {name: (value / steps).item() for name, value in of_all.items()}
        super().log(logs, *args, **kwargs)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimizer of the arguments, with a rate of its own for the LoRA factors."""
        if self.optimizer is None:
            optimized: Any = self.model if model is None else model
            trained = [(name, parameter) for name, parameter in optimized.named_parameters() if parameter.requires_grad]
            gates = [parameter for name, parameter in trained if GATE in name]
            factors = [parameter for name, parameter in trained if GATE not in name]
            groups = [{"params": gates}, *([{"params": factors, "lr": self.flags.lora_learning_rate}] if factors else [])]
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, optimized)
            self.optimizer = kind(groups, weight_decay=self.args.weight_decay, **options)
        return self.optimizer

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = super().evaluate(*args, **kwargs)
        model: Any = self.model
        routing = measure_languages(model, self.routing_rows, self.names, self.args.eval_batch_size, progress=False)
        self.log({f"eval_{name}": value for name, value in scalars(routing, self.names).items()})
        tqdm.write(f"step {self.state.global_step}: {format_line(routing)}")
        return metrics
