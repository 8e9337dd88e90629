"""The router's losses against their formulas in fp64, the noise's schedule, and accumulation against one big batch."""

import argparse
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from model import MoEConfig, MoEForCausalLM
from model.routers import noise_seeds
from moe_kernels.noise import standard_normal
from train.data.prompts import IGNORED
from train.gate_losses import label_loss
from train.gate_trainer import GateTrainer, collate_labelled, noise_scale
from train.settings import training_arguments

SHAPE = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
VOCABULARY = 50


def mixture(router: str = "noisy_topk", **settings) -> MoEForCausalLM:
    torch.manual_seed(3)
    model = MoEForCausalLM(MoEConfig(vocab_size=VOCABULARY, num_local_experts=4, router_type=router, **SHAPE, **settings))
    for name, parameter in model.named_parameters():
        if ".gate." in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.train()


def rows(count: int, longest: int = 14) -> list[dict[str, list[int]]]:
    """Rows of different lengths, a prompt of three tokens each, that belong to the experts in turn."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for index in range(count):
        ids = torch.randint(3, VOCABULARY, (longest - index % 6,), generator=generator).tolist()
        made.append({"input_ids": ids, "labels": [IGNORED] * 3 + ids[3:], "own_expert": [index % 4]})
    return made


def gate_inputs(model: MoEForCausalLM) -> list[torch.Tensor]:
    """Collects in fp64 what each layer's gate reads from here on."""
    seen: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.mlp.gate.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().double()))
    return seen


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_the_whole_loss_is_the_formula_at_every_scale_of_the_noise(scale):
    """LM + importance and load (Shazeer et al. 2017, eq. 6-11, noise times scale) + z (ST-MoE, eq. 5), by loops over tokens."""
    model = mixture(importance_coef=0.7, load_coef=0.3, router_z_loss_coef=0.05)
    batch = collate_labelled(rows(3), pad_token_id=0)
    batch.pop("own_expert")
    inputs = gate_inputs(model)
    model.set_router_step(5)
    model.set_router_noise(scale)
    output = model(**batch)
    normal = torch.distributions.Normal(0.0, 1.0)
    total = torch.zeros((), dtype=torch.double)
    for index, (layer, x) in enumerate(zip(model.model.layers, inputs, strict=True)):
        gate = layer.mlp.gate
        noise = standard_normal(noise_seeds(0, 2, torch.tensor(5))[index], len(x), 4).double()
        importance, load, z, tokens = [0.0] * 4, [0.0] * 4, 0.0, batch["attention_mask"].flatten().nonzero()[:, 0].tolist()
        for token in tokens:
            clean = [float(x[token] @ row) for row in gate.weight.detach().double()]
            std = [scale * float(torch.log1p(torch.exp(x[token] @ row))) for row in gate.noise_weight.detach().double()]
            noisy = [clean[e] + float(noise[token, e]) * std[e] for e in range(4)]
            best = sorted(range(4), key=lambda e: -noisy[e])[:2]
            whole = sum(torch.tensor(noisy[e]).double().exp().item() for e in best)
            for e in range(4):
                if e in best:
                    importance[e] += torch.tensor(noisy[e]).double().exp().item() / whole
                threshold = sorted((noisy[other] for other in range(4) if other != e), reverse=True)[1]
                load[e] += float(normal.cdf(torch.tensor((clean[e] - threshold) / std[e]).double()))
            z += float(torch.tensor(clean).double().exp().sum().log()) ** 2 / len(tokens)

        def squared_variation(values):
            mean = sum(values) / 4
            return sum((value - mean) ** 2 for value in values) / 4 / mean**2

        total += (0.7 * squared_variation(importance) + 0.3 * squared_variation(load) + 0.05 * z) / 2
    language_model = model.loss_function(output.logits, batch["labels"], VOCABULARY)
    torch.testing.assert_close((output.loss - language_model).double(), total, rtol=2e-4, atol=0)


def test_no_noise_is_no_noise():
    model, batch = mixture(), collate_labelled(rows(3), pad_token_id=0)
    batch.pop("own_expert")
    model.set_router_noise(0.0)
    silent = model(**batch).logits
    model.set_router_noise(1.0)
    noisy = model(**batch).logits
    assert torch.equal(silent, model.eval()(**batch).logits)
    assert not torch.equal(silent, noisy)


def test_the_label_loss_is_a_cross_entropy_over_the_completions_tokens():
    torch.manual_seed(0)
    logits = [torch.randn(12, 4) for _ in range(3)]
    labels = torch.tensor([[IGNORED, IGNORED, 7, 8, 9, IGNORED], [IGNORED, 5, 6, 7, 8, 9]])
    own = torch.tensor([2, 0])
    expected = 0.0
    for layer in logits:
        for row in range(2):
            for column in range(6):
                if labels[row, column] != IGNORED:
                    p = layer[row * 6 + column].double().exp()
                    expected -= float((p[own[row]] / p.sum()).log()) / 3
    assert label_loss(logits, own, labels).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("schedule", "values"), [("constant", (1, 1, 1)), ("linear", (1, 0.5, 0)), ("cosine", (1, 0.5, 0)), ("none", (0, 0, 0))]
)
def test_noise_schedules(schedule, values):
    assert [noise_scale(schedule, share) for share in (0, 0.5, 1)] == pytest.approx(values)
    falling = [noise_scale(schedule, step / 10) for step in range(11)]
    assert falling == sorted(falling, reverse=True)


def make_trainer(model: MoEForCausalLM, folder: Path, train_rows: list, callbacks: list, **flags) -> GateTrainer:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".gate." in name)
    settings = {"epochs": 1, "max_steps": 1, "learning_rate": 0.05, "warmup": 0, "weight_decay": 0, "clip": 1e9, "seed": 0}
    settings |= {"checkpointing": "off", "batch_size": 8, "accumulation": 1, "noise": "none", "label_loss": 0.5, **flags}
    args = argparse.Namespace(eval_every=settings["max_steps"], **settings)
    return GateTrainer(
        model=model,
        args=training_arguments(args, folder, len(train_rows)),
        train_dataset=train_rows,
        eval_dataset=rows(2),
        data_collator=lambda examples: collate_labelled(examples, 0),
        callbacks=callbacks,
        flags=args,
        routing_rows={"python": rows(2)},
        names=["python", "java", "javascript", "cpp"],
    )


def trained_gradients(folder: Path, router: str, **flags) -> dict[str, torch.Tensor]:
    """The gate's gradients of the first optimizer step over eight rows, as the trainer computes them."""
    found = {}

    class Recorder(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
            found.update({name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None})

    model = mixture(router, importance_coef=0.0, load_coef=0.0, router_aux_loss_coef=0.0)
    make_trainer(model, folder, rows(8), [Recorder()], **flags).train()
    assert found
    return found


@pytest.mark.parametrize("router", ["noisy_topk", "topk", "softmax", "switch", "sequence"])
def test_accumulated_gradients_are_those_of_one_big_batch(tmp_path, router):
    """Without noise. The completion's loss and the label loss are means over tokens, of which micro-batches have different numbers."""
    big = trained_gradients(tmp_path / "big", router, batch_size=8, accumulation=1)
    small = trained_gradients(tmp_path / "small", router, batch_size=2, accumulation=4)
    assert big.keys() == small.keys()
    for name, gradient in big.items():
        torch.testing.assert_close(small[name], gradient, rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.parametrize("router", ["noisy_topk", "topk", "softmax", "switch", "sequence"])
def test_the_logged_parts_of_the_loss_make_up_the_whole(tmp_path, router):
    """Times their weights, at each of several steps of micro-batches of different sizes, with noise where there is any."""
    weights = {"importance": 0.3, "load": 0.2, "balance": 0.7, "z": 0.05}
    fields = ("importance_coef", "load_coef", "router_aux_loss_coef", "router_z_loss_coef")
    model = mixture(router, **dict(zip(fields, weights.values(), strict=True)))
    noise = "constant" if router == "noisy_topk" else "none"
    trainer = make_trainer(model, tmp_path, rows(9), [], batch_size=2, accumulation=2, max_steps=6, noise=noise)
    trainer.args.logging_steps = 2
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in entries] == [1, 2, 4, 6]
    kinds = {"balance", "z"} if router in ("topk", "switch") else {"importance", "load", "z"}
    for entry in entries:
        assert {name for name in entry if "_loss" in name} == {f"{name}_loss" for name in (*kinds, "language_model", "label")}
        router_parts = sum(weights[kind] * entry[f"{kind}_loss"] for kind in kinds)
        assert entry["loss"] == pytest.approx(entry["language_model_loss"] + 0.5 * entry["label_loss"] + router_parts, rel=1e-5)
        assert all(entry[f"{kind}_loss"] > 0 for kind in kinds if (router, kind) != ("softmax", "load"))


def test_the_label_loss_falls_and_the_gate_alone_moves(tmp_path):
    """On rows whose tokens tell their expert: its cross entropy, in fp64, from the saved logits."""
    spoken = rows(8)
    for row in spoken:
        row["input_ids"] = [3 + token % 11 + 11 * row["own_expert"][0] for token in row["input_ids"]]
        row["labels"] = [label if label == IGNORED else token for label, token in zip(row["labels"], row["input_ids"], strict=True)]
    model = mixture()
    before, started = cross_entropy(model, spoken), {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    make_trainer(model, tmp_path, spoken, [], max_steps=15, noise="cosine", label_loss=1.0).train()
    assert cross_entropy(model, spoken) < before / 2
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, started[name]) == (".gate." not in name), name


def cross_entropy(model: MoEForCausalLM, examples: list) -> float:
    losses = []
    for row in examples:
        with torch.no_grad():
            layers = model.eval()(torch.tensor([row["input_ids"]]), output_router_logits=True).router_logits
        completion = torch.tensor(row["labels"]) != IGNORED
        losses += [-layer[completion].double().log_softmax(dim=1)[:, row["own_expert"][0]] for layer in layers]
    return torch.cat(losses).mean().item()
