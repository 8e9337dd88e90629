"""`MoEForCausalLM` where users put `MixtralForCausalLM`: losses, compiling, Trainer, PEFT.

The oracle is transformers' Mixtral on the same checkpoint, or the same model without the feature.
"""

import shutil
import warnings

import pytest
import torch
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    StaticCache,
    Trainer,
    TrainingArguments,
)
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from model import MoEForCausalLM, RouterStepCallback

from .conftest import SHAPE

CUDA = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")])


@pytest.mark.parametrize("padding", [False, True])
def test_one_layers_loss_and_gradients_are_mixtrals(tmp_path, ids, padded, padding):
    MixtralForCausalLM(MixtralConfig(**SHAPE | {"num_hidden_layers": 1}, num_local_experts=4, router_aux_loss_coef=0.5)).save_pretrained(
        tmp_path
    )
    labels = padded["input_ids"].masked_fill(padded["attention_mask"] == 0, -100)
    inputs = padded if padding else {"input_ids": ids}  # padding without a mask would tie: its embedding, and so its logits, are zeros
    outputs, gates = [], []
    for cls in (MoEForCausalLM, MixtralForCausalLM):
        model = cls.from_pretrained(tmp_path).train()
        outputs.append(model(**inputs, labels=labels, output_router_logits=True))
        outputs[-1].loss.backward()
        gates.append(model.model.layers[0].mlp.gate.weight.grad)
    for name in ("aux_loss", "loss"):
        torch.testing.assert_close(outputs[0][name], outputs[1][name], atol=1e-6, rtol=0)
    torch.testing.assert_close(*gates, atol=1e-5, rtol=0)


@torch.no_grad()
def test_aux_loss_is_the_mean_of_each_layers(ours, padded):
    output = ours(**padded, output_router_logits=True)
    layers = [load_balancing_loss_func((logits,), 4, 2, padded["attention_mask"]) for logits in output.router_logits]
    torch.testing.assert_close(output.aux_loss, torch.stack(layers).mean(), atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
def test_aux_loss_is_added_when_mixtral_adds_it(ours, theirs, ids, training):
    ours.config.router_aux_loss_coef = 0.5
    for model in (ours.train(training), theirs.train(training)):
        output = model(ids, labels=ids)
        assert output.aux_loss is None and output.router_logits is None
        with_logits = model(ids, labels=ids, output_router_logits=True)
        coefficient = 0.5 if model is ours else model.router_aux_loss_coef
        torch.testing.assert_close(with_logits.loss, output.loss + coefficient * with_logits.aux_loss)


@torch.no_grad()
def test_switch_has_its_own_papers_loss(mixtral, ids):
    """E · Σ_e f_e P_e with f the share of tokens whose largest probability is e's (arXiv:2101.03961, eq. 4-6)."""
    output = MoEForCausalLM.from_pretrained(mixtral, router_type="switch")(ids, output_router_logits=True)
    losses = []
    for logits in output.router_logits:
        probability = logits.double().softmax(dim=1)
        share = torch.bincount(probability.argmax(dim=1), minlength=4) / len(probability)
        losses.append(4 * (share * probability.mean(dim=0)).sum())
    torch.testing.assert_close(output.aux_loss.double(), torch.stack(losses).mean(), atol=1e-6, rtol=0)


def test_jitter_is_mixtrals(mixtral, ids):
    losses = []
    for cls in (MoEForCausalLM, MixtralForCausalLM):
        model = cls.from_pretrained(mixtral, router_jitter_noise=0.3).train()
        torch.manual_seed(5)
        losses.append(model(ids, labels=ids).loss)
        assert model.eval()(ids, labels=ids).loss != losses[-1]
    torch.testing.assert_close(*losses, atol=1e-5, rtol=0)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@torch.no_grad()
def test_nf4_compiles_whole(device, mixtral, padded):
    model = MoEForCausalLM.from_pretrained(mixtral, quantize="nf4").to(device)
    padded = {name: tensor.to(device) for name, tensor in padded.items()}
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**padded).logits, model(**padded).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_that_loses_the_balance_losses_gradient_is_warned_of(noisy, ids, reentrant):
    noisy.train().gradient_checkpointing_enable({"use_reentrant": reentrant})
    noisy.enable_input_require_grads()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        output = noisy(ids, labels=ids)
    assert output.aux_loss.requires_grad is not reentrant
    assert any("no gradient under reentrant checkpointing" in str(warning.message) for warning in caught) is reentrant


def test_compiled_training_is_not_compiled_anew_at_each_step(noisy, ids):
    noisy.train()
    noisy(ids, labels=ids)  # installs transformers' hooks that record outputs, which cannot be traced
    noisy.set_router_step(0)
    torch._dynamo.reset()
    compiled = torch.compile(noisy, fullgraph=True, backend="aot_eager")
    losses = [compiled(ids, labels=ids).loss for _ in range(2)]
    losses[0].backward()
    with torch.compiler.set_stance("fail_on_recompile"):
        losses.append(compiled(ids, labels=ids).loss)
    noisy.set_router_step(0)
    plain = [noisy(ids, labels=ids).loss for _ in range(3)]
    torch.testing.assert_close(losses, plain)
    assert len({loss.item() for loss in plain}) == 3  # each step has noise of its own


@torch.no_grad()
def test_static_cache_compiles_whole(ours, ids):
    cache = StaticCache(config=ours.config, max_cache_len=32)
    step = torch.compile(ours, fullgraph=True, backend="aot_eager")
    ours(ids, past_key_values=cache)
    logits = step(ids[:, :1], past_key_values=cache).logits
    torch.testing.assert_close(logits[:, 0], ours(torch.cat([ids, ids[:, :1]], dim=1)).logits[:, -1], atol=1e-5, rtol=0)


class Rows(torch.utils.data.Dataset):
    def __init__(self, ids: torch.Tensor) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def arguments(folder, **changes) -> TrainingArguments:
    settings: dict = {
        "per_device_train_batch_size": 3,
        "max_steps": 8,
        "save_steps": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
    }
    return TrainingArguments(
        output_dir=str(folder), report_to="none", use_cpu=True, logging_steps=1, disable_tqdm=True, **settings | changes
    )


def train(checkpoint, ids, folder, resume=False, callbacks=None, **changes) -> Trainer:
    model = MoEForCausalLM.from_pretrained(checkpoint)
    trainer = Trainer(model, arguments(folder, **changes), train_dataset=Rows(ids), callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def losses_of(trainer: Trainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def test_trainer_learns_and_resumes(mixtral, ids, tmp_path):
    whole = train(mixtral, ids, tmp_path / "whole")
    losses = losses_of(whole)
    assert losses[-1] < 0.8 * losses[0]
    train(mixtral, ids, tmp_path / "parts", max_steps=4)
    resumed = train(mixtral, ids, tmp_path / "parts", resume=True)
    assert losses_of(resumed) == losses
    expected = whole.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.model.state_dict().items())
    assert MoEForCausalLM.from_pretrained(tmp_path / "whole" / "checkpoint-8").config.router_type == "topk"


def test_label_smoothing_is_mixtrals(mixtral, ids, tmp_path):
    losses = []
    for cls in (MoEForCausalLM, MixtralForCausalLM):
        options = arguments(tmp_path, max_steps=3, save_strategy="no", label_smoothing_factor=0.1)
        trainer = Trainer(cls.from_pretrained(mixtral), options, train_dataset=Rows(ids))
        trainer.train()
        losses.append(losses_of(trainer))
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_a_resumed_trainer_goes_on_with_the_noise_of_an_unbroken_one(noisy, ids, tmp_path):
    noisy.save_pretrained(tmp_path / "noisy")
    uneven = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "save_steps": 3}  # of an epoch's three batches

    def run(name, **options):
        return losses_of(train(tmp_path / "noisy", ids, tmp_path / name, **uneven, **options))

    for callbacks in ([RouterStepCallback()], []):
        whole = run("whole", callbacks=callbacks)
        run("parts", max_steps=3, callbacks=callbacks)
        assert (run("parts", resume=True, callbacks=callbacks) == whole) == bool(callbacks)
        shutil.rmtree(tmp_path / "parts")


def test_training_around_frozen_matrices_is_warned_of(mixtral, ids, tmp_path):
    model = MoEForCausalLM.from_pretrained(mixtral, quantize="nf4")
    trainer = Trainer(model, arguments(tmp_path, max_steps=1), train_dataset=Rows(ids))
    with pytest.warns(UserWarning, match="matrices in NF4 do not learn: embeddings, norms, head and gates alone will"):
        trainer.train()
    for name, parameter in model.named_parameters():  # as `train.gate` does; PEFT freezes all that is not the adapter's
        parameter.requires_grad_(".gate." in name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.train()
        MoEForCausalLM.from_pretrained(mixtral).train()


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_peft_trains_saves_and_loads_an_adapter_on_attention(mixtral, ids, tmp_path, quantize):
    from peft import LoraConfig, PeftModel, get_peft_model

    def load():
        return MoEForCausalLM.from_pretrained(mixtral, quantize=quantize)

    torch.manual_seed(0)
    model = get_peft_model(load(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(5):
        losses.append(model(input_ids=ids, labels=ids).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len(trained) == 8 and losses[-1] < losses[0]
    model.save_pretrained(str(tmp_path))
    with torch.no_grad():
        expected = model.eval()(input_ids=ids).logits
        again = PeftModel.from_pretrained(load(), str(tmp_path)).eval()
        assert torch.equal(again(input_ids=ids).logits, expected)
        own = load()
        own.load_adapter(str(tmp_path))
        assert torch.equal(own(input_ids=ids).logits, expected)
        if quantize is None:
            torch.testing.assert_close(again.merge_and_unload()(ids).logits, expected, atol=1e-5, rtol=0)
        else:
            with pytest.raises(ValueError, match="the bytes of NF4 are no matrix: no adapter can be merged into them"):
                again.merge_and_unload()  # not a silent loss of the adapter


@pytest.mark.parametrize("adapted", [False, True])
def test_ddp_broadcasts_no_frozen_bytes(mixtral, tmp_path, adapted):
    """By default it sends every buffer that it was not told to leave, before every forward."""
    from peft import LoraConfig, get_peft_model

    model = MoEForCausalLM.from_pretrained(mixtral, quantize="nf4")
    if adapted:
        model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"]))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        assert len(list(model.buffers())) > 20
        assert torch.nn.parallel.DistributedDataParallel(model).modules_buffers == []
    finally:
        torch.distributed.destroy_process_group()


def test_dora_on_nf4_is_refused(mixtral):
    from peft import LoraConfig, get_peft_model

    model = MoEForCausalLM.from_pretrained(mixtral, quantize="nf4")
    with pytest.raises(ValueError, match=r"the bytes of NF4 are no matrix: .* nor be a DoRA; load it with quantize='none'"):
        get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], use_dora=True))
