"""The losses against formulas in fp64 and, where TRL is installed, against its `DPOTrainer`."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from model import MoEConfig, MoEForCausalLM
from train.data.preferences import Preference, encode_preferences
from train.preference import PreferenceLoss, PreferenceTrainer, Row, collate_preferences, count_tokens, log_probs

PAIRS = [("int f(", "int a) {}", "a b c d"), ("def f(", "a): return a\n", "a)"), ("function g(a)", " {}", " {\n}"), ("class", " S {}", "")]
VARIANTS = {
    "dpo": PreferenceLoss(0.3),
    "conservative": PreferenceLoss(0.3, label_smoothing=0.2),
    "ipo": PreferenceLoss(0.3, "ipo"),
    "rpo": PreferenceLoss(0.3, sft_weight=0.7),
}


@pytest.fixture
def tokenizer(tiny_base):
    return AutoTokenizer.from_pretrained(tiny_base)


@pytest.fixture
def rows(tokenizer) -> list[Row]:
    rows, dropped = encode_preferences([Preference(*texts, texts[0]) for texts in PAIRS], tokenizer, 64)
    assert len(rows) == len(PAIRS) and not any(dropped.values())
    return rows


@pytest.fixture
def policy(tiny_base) -> PeftModel:
    """A base with factors that change it."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    return get_peft_model(base, LoraConfig(r=4, target_modules=["up_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM"))


def collate(rows: list[Row]) -> dict[str, torch.Tensor]:
    return collate_preferences(rows, pad_token_id=0)


def test_log_probs_are_sums_over_the_completion_in_any_padding(policy, rows):
    """Against one row at a time in fp64, token by token."""
    policy.double()
    completions = rows + [row["rejected"] for row in rows]
    expected = []
    for row in completions:
        with torch.no_grad():
            logits = policy(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        counted = [place for place, label in enumerate(row["labels"]) if label != -100]
        assert row["input_ids"][counted[-1]] == 2, "EOS is counted"
        expected.append(sum(logits[place - 1, row["input_ids"][place]].item() for place in counted))
    found = log_probs(policy, collate(rows))
    assert torch.allclose(found, torch.tensor(expected, dtype=found.dtype), rtol=1e-5)
    assert count_tokens(collate(rows)).tolist() == [sum(label != -100 for label in row["labels"]) for row in completions]


def test_the_prompt_alone_chooses_the_expert_of_a_sequence_router(rows, tokenizer):
    """The oracle reads the prompt first, as generating does, and the completion with the cache that keeps its choice."""
    torch.manual_seed(4)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = MoEForCausalLM(MoEConfig(vocab_size=len(tokenizer), num_local_experts=4, router_type="sequence", **shape)).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=3.0 if ".gate." in name else 0.5)
    expected, whole = [], []
    for row in rows + [row["rejected"] for row in rows]:
        prompt = row["labels"].count(-100)
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            first = model(ids[:, :prompt], use_cache=True)
            rest = model(ids[:, prompt:], past_key_values=first.past_key_values).logits
            logits = torch.cat([first.logits[:, -1:], rest[:, :-1]], dim=1)[0]
            by_all = model(ids).logits[0, prompt - 1 : -1]
        for found, of_row in ((expected, logits), (whole, by_all)):
            found.append(of_row.log_softmax(-1).gather(1, ids[0, prompt:, None]).sum().item())
    for training in (False, True):
        assert torch.allclose(log_probs(model.train(training), collate(rows)), torch.tensor(expected), rtol=1e-4)
    assert not torch.allclose(torch.tensor(whole), torch.tensor(expected), rtol=1e-2), "the completion would have chosen otherwise"


@pytest.mark.parametrize("name", VARIANTS)
def test_the_loss_is_the_papers_formula(name):
    """chosen and rejected: log π, log π_ref and length of each, by hand in fp64."""
    loss, sigma = VARIANTS[name], lambda x: 1 / (1 + math.exp(-x))
    numbers = [(-10.0, -12.0, 5, -20.0, -19.0, 8), (-3.0, -1.0, 2, -4.0, -9.0, 4), (-7.0, -7.0, 3, -7.0, -7.0, 3)]
    expected = []
    for chosen, chosen_ref, m, rejected, rejected_ref, n in numbers:
        delta = (chosen - chosen_ref) - (rejected - rejected_ref)
        expected.append(
            {
                "dpo": -math.log(sigma(0.3 * delta)),
                "conservative": -0.8 * math.log(sigma(0.3 * delta)) - 0.2 * math.log(sigma(-0.3 * delta)),
                "ipo": ((chosen - chosen_ref) / m - (rejected - rejected_ref) / n - 1 / 0.6) ** 2,
                "rpo": -math.log(sigma(0.3 * delta)) - 0.7 * chosen / m,
            }[name]
        )
    columns = torch.tensor(numbers, dtype=torch.float64).T
    policy, reference, tokens = (torch.cat([columns[i], columns[i + 3]]) for i in range(3))
    assert torch.allclose(loss(policy, reference, tokens), torch.tensor(expected, dtype=torch.float64), rtol=1e-12)


def trainer_of(model, rows, folder: Path, loss: PreferenceLoss = VARIANTS["dpo"], **options) -> PreferenceTrainer:
    settings = {"use_cpu": True, "report_to": "none", "remove_unused_columns": False, "max_steps": 1, "optim": "sgd", "max_grad_norm": 0.0}
    arguments = TrainingArguments(str(folder), **settings, **options)
    return PreferenceTrainer(
        model=model, args=arguments, train_dataset=rows, eval_dataset=rows, data_collator=collate, preference_loss=loss
    )


def test_accumulated_steps_are_the_big_batch(tiny_base, rows, tmp_path):
    """One step on 3 pairs, and one of micro-batches of 2 and 1 pairs: the mean is over pairs, not over micro-batches."""
    stepped = []
    for size, accumulation in ((3, 1), (2, 2)):
        model = AutoModelForCausalLM.from_pretrained(tiny_base)
        options = {
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": accumulation,
            "learning_rate": 1.0,
            "lr_scheduler_type": "constant",
        }
        trainer_of(model, [dict(row) for row in rows[:3]], tmp_path / str(size), **options).train()
        stepped.append(model.model.layers[0].mlp.up_proj.weight.detach())
    before = AutoModelForCausalLM.from_pretrained(tiny_base).model.layers[0].mlp.up_proj.weight
    moved = (stepped[0] - before).abs().max()
    assert moved > 1e-4 and (stepped[0] - stepped[1]).abs().max() < 1e-3 * moved


@pytest.mark.parametrize("name", ["dpo", "ipo", "rpo"])
def test_loss_and_gradients_are_those_of_trl(name, policy, rows, tokenizer, tmp_path):
    """For TRL too the reference is the adapter as it was given. Its `sft` is a mean over all tokens of a batch: one pair then."""
    trl = pytest.importorskip("trl", reason="TRL, the oracle, is not installed")
    from datasets import Dataset

    ours = VARIANTS[name]
    rows = rows[:1] if name == "rpo" else rows
    kinds = {"dpo": ["sigmoid"], "ipo": ["ipo"], "rpo": ["sigmoid", "sft"]}[name]
    config = trl.DPOConfig(
        str(tmp_path), beta=ours.beta, loss_type=kinds, loss_weights=[1.0, ours.sft_weight][: len(kinds)], use_cpu=True, report_to="none"
    )
    dataset = Dataset.from_list([{"prompt": prompt, "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in PAIRS])
    batch = collate(rows)
    trainer = trl.DPOTrainer(policy, args=config, train_dataset=dataset, processing_class=tokenizer)  # copies the adapter: its reference
    with torch.no_grad():
        reference = log_probs(policy, batch)
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    losses = ours(log_probs(policy, batch), reference, count_tokens(batch))
    losses.mean().backward()
    learned = {key: value for key, value in policy.named_parameters() if value.requires_grad}
    gradients = {key: value.grad.clone() for key, value in learned.items()}
    policy.zero_grad()
    mask = (batch["labels"] != -100).long()
    expected = trainer.compute_loss(policy, {key: batch[key] for key in ("input_ids", "attention_mask")} | {"completion_mask": mask})
    expected.backward()
    assert losses.mean().item() == pytest.approx(expected.item(), rel=1e-5)
    for key, value in learned.items():
        assert torch.allclose(gradients[key], value.grad, rtol=1e-3, atol=1e-6), key
    measured = partial(PreferenceTrainer.measure, trainer_of(policy, rows, tmp_path, ours))
    pairs = torch.stack([log_probs(policy, batch).detach(), reference]).view(2, 2, -1).movedim(-1, 0)
    for key, value in measured(pairs).items():
        assert value == pytest.approx(trainer._metrics["train"][key][0], rel=1e-4, abs=1e-5), key
