"""The loss without logits against the models' own, and that of packed rows against padded ones: values and gradients."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, MistralForCausalLM, TrainingArguments

from model import MoEConfig, MoEForCausalLM
from train import loss
from train.data.prompts import collate, collate_packed
from train.expert import load_base
from train.lora import ExpertTrainer
from train.trainer import PairTrainer

LORA = {"r": 4, "target_modules": ["up_proj", "down_proj", "q_proj"], "init_lora_weights": False}
SHAPE = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
ROWS = [
    {"input_ids": [1, 5, 6, 7, 8, 2], "labels": [-100, -100, 6, 7, 8, 2]},
    {"input_ids": [1, 9, 9, 4, 11, 12, 13, 2], "labels": [-100, -100, -100, -100, 11, 12, 13, 2]},
    {"input_ids": [3, 9, 2], "labels": [3, 9, 2]},
]


def mixture(router: str) -> MoEForCausalLM:
    torch.manual_seed(0)
    return MoEForCausalLM(MoEConfig(num_key_value_heads=1, num_local_experts=4, router_type=router, router_z_loss_coef=0.01, **SHAPE))


def expert(base: Path, *, checkpointing: bool) -> nn.Module:
    return get_peft_model(load_base(str(base), checkpointing=checkpointing)[0], LoraConfig(**LORA))


MODELS = {
    "all weights learn, head included": lambda base: MistralForCausalLM.from_pretrained(base),
    "a LoRA on NF4": lambda base: expert(base, checkpointing=False),
    "checkpointed": lambda base: expert(base, checkpointing=True),
    "noisy_topk": lambda base: mixture("noisy_topk"),
    "switch": lambda base: mixture("switch"),
    "sequence": lambda base: mixture("sequence"),
}


def loss_and_gradients(trainer: PairTrainer, method, micro_batches: list, training: bool) -> tuple[float, dict[str, Tensor]]:
    """By `method`, over micro-batches of one step; the routers' noise is drawn anew."""
    model = trainer.model.train(training)
    model.zero_grad()
    if isinstance(model, MoEForCausalLM):
        model.set_router_step(0)
    count = sum((batch["labels"][:, 1:] != -100).sum() for batch in micro_batches) if training else None
    total = 0.0
    for batch in micro_batches:
        inputs = {**batch, "output_router_logits": True} if isinstance(model, MoEForCausalLM) and training else batch
        found = method(trainer, model, dict(inputs), num_items_in_batch=count)
        total += found.item()
        if training:
            found.backward()
    return total, {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("chunk", [1, 300, 2**24])
@pytest.mark.parametrize("kind", MODELS)
def test_loss_and_gradients_are_those_with_logits(kind, chunk, tiny_base, tmp_path, monkeypatch):
    """transformers' compute_loss is the oracle, in one batch, in micro-batches and in evaluation; a chunk may be one token."""
    monkeypatch.setattr(loss, "CHUNK", chunk)
    model = MODELS[kind](tiny_base)
    trainer = PairTrainer(model=model, args=TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    plain = super(PairTrainer, PairTrainer).compute_loss
    for rows, training in (([ROWS], True), ([ROWS[:2], ROWS[2:]], True), ([ROWS], False)):
        batches = [collate(of_batch, pad_token_id=0) for of_batch in rows]
        expected, oracle = loss_and_gradients(trainer, plain, batches, training)
        found, gradients = loss_and_gradients(trainer, PairTrainer.compute_loss, batches, training)
        assert found == pytest.approx(expected, rel=1e-6)
        assert gradients.keys() == oracle.keys() and bool(oracle) == training
        for name, gradient in oracle.items():
            assert (gradient - gradients[name]).norm() <= 1e-6 * gradient.norm() + 1e-9, name


def test_the_head_sees_labelled_tokens_only_and_is_itself_again(tiny_base, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    batch = collate(ROWS, pad_token_id=0)
    before = model(**batch).logits
    seen: list[tuple[int, ...]] = []

    class Watched(nn.Linear):
        def forward(self, x):
            seen.append(tuple(x.shape))
            return super().forward(x)

    model.lm_head.__class__ = Watched
    monkeypatch.setattr(loss, "CHUNK", 2 * model.config.vocab_size)
    with pytest.raises(KeyError), loss.losses_for_logits(model, batch["labels"]):
        assert model(**batch).logits.shape == batch["labels"].shape
        raise KeyError
    assert seen == [(2, 64)] * 5, "4 and 4 of the completions' tokens, and the 2 that follow another in the third row"
    assert "forward" not in vars(model.lm_head) and "_loss_function" not in vars(model)
    assert torch.equal(model(**batch).logits, before)


def test_a_model_that_changes_its_logits_is_refused(tiny_base):
    class Capped(MistralForCausalLM):
        """As Gemma 2: a cap between head and loss."""

        def forward(self, labels=None, **kwargs):
            return self.loss_function(super().forward(**kwargs).logits.tanh(), labels, self.vocab_size)

    batch = collate(ROWS, pad_token_id=0)
    model = Capped.from_pretrained(tiny_base)
    with pytest.raises(ValueError, match="Capped changes its logits after the head"), loss.losses_for_logits(model, batch["labels"]):
        model(**batch)


def test_rows_lie_whole_in_few_sequences():
    batch = collate_packed(ROWS, pad_token_id=0, max_length=9)
    assert batch["input_ids"].tolist() == [[1, 9, 9, 4, 11, 12, 13, 2, 0], [1, 5, 6, 7, 8, 2, 3, 9, 2]]
    assert batch["position_ids"].tolist() == [[*range(8), 0], [*range(6), *range(3)]]
    assert batch["labels"].tolist() == [[-100] * 4 + [11, 12, 13, 2, -100], [-100, -100, 6, 7, 8, 2, -100, 9, 2]]
    assert {name: of_batch.shape for name, of_batch in collate_packed(ROWS, 0, 8).items()}["labels"] == (3, 8)


PACKED = {
    "sdpa": lambda base: MistralForCausalLM.from_pretrained(base, attn_implementation="sdpa"),
    "eager": lambda base: MistralForCausalLM.from_pretrained(base, attn_implementation="eager"),
    "a sliding window": lambda base: MistralForCausalLM.from_pretrained(base, sliding_window=3),
    "a LoRA on NF4": lambda base: expert(base, checkpointing=False),
    "checkpointed": lambda base: expert(base, checkpointing=True),
    "topk": lambda base: mixture("topk"),
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_right_padding_needs_no_mask(attention, tiny_base, tmp_path):
    """An expert's trainer leaves the mask out; the oracle has it."""
    model = MistralForCausalLM.from_pretrained(tiny_base, attn_implementation=attention)
    settings = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    trainer = ExpertTrainer(model=model, args=settings, neftune_alpha=0.0, loraplus_ratio=1.0, packing=False)
    batches = [collate(ROWS, pad_token_id=0)]
    expected, oracle = loss_and_gradients(trainer, super(PairTrainer, PairTrainer).compute_loss, batches, True)
    found, gradients = loss_and_gradients(trainer, ExpertTrainer.compute_loss, batches, True)
    assert found == pytest.approx(expected, rel=1e-6)
    for name, gradient in oracle.items():
        assert (gradient - gradients[name]).norm() <= 2e-6 * gradient.norm() + 1e-9, name


@pytest.mark.parametrize("kind", PACKED)
def test_losses_and_gradients_are_those_of_the_padded_rows(kind, tiny_base, tmp_path):
    model = PACKED[kind](tiny_base).train()
    trainer = PairTrainer(model=model, args=TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    found = []
    for batch in (collate(ROWS, pad_token_id=0), collate_packed(ROWS, pad_token_id=0, max_length=20)):
        model.zero_grad()
        loss = trainer.compute_loss(model, batch)
        loss.backward()
        found.append((loss, {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}))
    (padded, expected), (packed, gradients) = found
    assert torch.allclose(padded, packed, rtol=1e-6)
    assert expected.keys() == gradients.keys() and expected
    for name, gradient in expected.items():
        assert (gradient - gradients[name]).norm() <= 2e-6 * gradient.norm() + 1e-9, name
