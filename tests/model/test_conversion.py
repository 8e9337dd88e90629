import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM

from model import MoEForCausalLM
from model.checkpoint import WEIGHTS
from model.checkpoint_writer import CheckpointWriter


def separate(state):
    """transformers 4 and mergekit 0.1.4."""
    return state


def fused(state):
    """transformers 5 and mergekit 0.1.5."""
    result = {name.replace("block_sparse_moe", "mlp"): value for name, value in state.items() if ".experts." not in name}
    for layer in range(2):
        matrices = {
            part: torch.stack([state[f"model.layers.{layer}.block_sparse_moe.experts.{e}.{part}.weight"] for e in range(4)])
            for part in ("w1", "w2", "w3")
        }
        result[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = torch.cat([matrices["w1"], matrices["w3"]], dim=1)
        result[f"model.layers.{layer}.mlp.experts.down_proj"] = matrices["w2"]
    return result


def per_expert(state):
    names = {"block_sparse_moe": "mlp", "w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
    return {".".join(names.get(part, part) for part in name.split(".")): value for name, value in state.items()}


@pytest.fixture
def rewrite(mixtral, tmp_path):
    """Writes the Mixtral checkpoint again with its state changed by a function."""

    def run(change, shard_bytes=1 << 40):
        shutil.copy(mixtral / "config.json", tmp_path)
        with CheckpointWriter(tmp_path, shard_bytes) as writer:
            for name, tensor in change(load_file(mixtral / WEIGHTS)).items():
                writer.add(name, tensor)
        return tmp_path

    return run


@torch.no_grad()
@pytest.mark.parametrize("shard_bytes", [1 << 40, 50_000])
@pytest.mark.parametrize("layout", [separate, fused, per_expert])
def test_all_three_layouts_are_one_model(mixtral, rewrite, ids, layout, shard_bytes):
    folder = rewrite(layout, shard_bytes)
    assert (folder / WEIGHTS).exists() == (shard_bytes == 1 << 40)
    model = MoEForCausalLM.from_pretrained(folder)
    reference = MixtralForCausalLM.from_pretrained(mixtral)
    assert torch.equal(model.model.layers[1].mlp.experts.gate_up_proj, reference.model.layers[1].mlp.experts.gate_up_proj)
    torch.testing.assert_close(model(ids).logits, reference(ids).logits, atol=1e-5, rtol=0)


EXPERT = "model.layers.1.block_sparse_moe.experts.2.w3.weight"


def without(name):
    return lambda state: {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("model.norm.weight"), r"missing model\.norm\.weight"),
        (without(EXPERT), r"missing model\.layers\.1\.mlp\.experts\.gate_up_proj of expert 2$"),
        (lambda state: without(EXPERT)(without(EXPERT.replace("w3", "w1"))(state)), r"missing [^,]*gate_up_proj of expert 2$"),
        (lambda state: {**state, "model.extra": torch.ones(1)}, r"unexpected model\.extra"),
        (lambda state: {**state, EXPERT.replace("s.2.", "s.4."): state[EXPERT].clone()}, r"unexpected .*experts\.4\.w3\.weight"),
        (lambda state: {**state, EXPERT: state[EXPERT][:-1]}, r"misshaped .*experts\.2\.w3\.weight \[127, 64\] instead of"),
        (
            lambda state: {**state, "lm_head.weight": state["lm_head.weight"][1:]},
            r"misshaped lm_head\.weight \[63, 64\]",
        ),
        (lambda state: {**fused(state), EXPERT: state[EXPERT]}, r"unexpected .*experts\.2\.w3\.weight"),
    ],
)
def test_what_does_not_fit_is_named(rewrite, change, message):
    with pytest.raises(ValueError, match=message):
        MoEForCausalLM.from_pretrained(rewrite(change))


def test_every_mistake_is_named_at_once(rewrite):
    with pytest.raises(ValueError, match=r"missing .*; unexpected .*; misshaped "):
        MoEForCausalLM.from_pretrained(rewrite(lambda state: {"model.extra": torch.ones(1), "lm_head.weight": torch.ones(2, 2)}))


def test_wnoise_may_only_be_absent_from_a_mixtral(mixtral, tmp_path):
    model = MoEForCausalLM.from_pretrained(mixtral, router_type="noisy_topk")
    assert all(layer.mlp.gate.noise_weight.abs().max() == 0 for layer in model.model.layers)
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    del state["model.layers.1.mlp.gate.noise_weight"]
    save_file(state, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing model\.layers\.1\.mlp\.gate\.noise_weight"):
        MoEForCausalLM.from_pretrained(tmp_path)


def test_nf4_made_while_loading_is_bitsandbytes(mixtral):
    import bitsandbytes.functional as bnb

    model = MoEForCausalLM.from_pretrained(mixtral, quantization="nf4")
    state, original = model.state_dict(), MoEForCausalLM.from_pretrained(mixtral).state_dict()
    for name in ("model.layers.1.mlp.experts.gate_up_proj", "model.layers.0.self_attn.k_proj.weight"):
        packed, facts = bnb.quantize_4bit(original[name], quant_type="nf4", blocksize=64, compress_statistics=True)
        assert torch.equal(state[name].flatten(), packed.flatten())
        for key, value in facts.as_dict(packed=True).items():
            if "quant_state" not in key:
                assert torch.equal(state[f"{name}.{key}"].cpu(), value), key


def test_nf4_can_be_loaded_as_values(mixtral, tmp_path, ids):
    quantized = MoEForCausalLM.from_pretrained(mixtral, quantization="nf4")
    quantized.save_pretrained(tmp_path)
    values = MoEForCausalLM.from_pretrained(tmp_path, quantization=None)
    assert values.model.layers[0].mlp.experts.down_proj.shape == (4, 64, 128)
    with torch.no_grad():
        torch.testing.assert_close(values(ids).logits, quantized(ids).logits, atol=1e-5, rtol=0)


def test_nf4_of_another_shape_is_refused(mixtral, tmp_path):
    MoEForCausalLM.from_pretrained(mixtral, quantization="nf4").save_pretrained(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    name, other = "model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.q_proj.weight"
    state |= {name + key.removeprefix(other): value.clone() for key, value in state.items() if key.startswith(other)}
    save_file(state, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"misshaped .*0\.self_attn\.k_proj\.weight \[64, 64\] instead of \[32, 64\]"):
        MoEForCausalLM.from_pretrained(tmp_path)


def test_tied_embeddings(mixtral, rewrite, ids):
    folder = rewrite(without("lm_head.weight"))
    model = MoEForCausalLM.from_pretrained(folder, tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    reference = MixtralForCausalLM.from_pretrained(folder, tie_word_embeddings=True)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, reference(ids).logits, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_config_of_transformers_4(mixtral, tmp_path, ids):
    shutil.copytree(mixtral, tmp_path / "old")
    path = tmp_path / "old" / "config.json"
    config = json.loads(path.read_text())
    del config["rope_parameters"], config["dtype"]
    path.write_text(json.dumps({**config, "rope_theta": 777.0, "rope_scaling": None, "torch_dtype": "bfloat16"}))
    model = MoEForCausalLM.from_pretrained(path.parent)
    assert model.dtype == torch.bfloat16 and model.config.rope_parameters["rope_theta"] == 777.0
    reference = MixtralForCausalLM.from_pretrained(path.parent, dtype=torch.float32)
    torch.testing.assert_close(
        MoEForCausalLM.from_pretrained(path.parent, dtype="float32")(ids).logits, reference(ids).logits, atol=1e-5, rtol=0
    )


def test_arguments_that_mean_nothing_are_refused(mixtral):
    with pytest.raises(TypeError, match="quantise"):
        MoEForCausalLM.from_pretrained(mixtral, quantise="nf4")


MEASURE = """
import sys, threading, time
from model import MoEForCausalLM

def megabytes():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("RssAnon"))

MoEForCausalLM.from_pretrained(sys.argv[1], quantization="nf4")  # what is imported and set up once
before, peak, loading = megabytes(), [0.0], True

def watch():
    while loading:
        peak[0] = max(peak[0], megabytes())
        time.sleep(0.001)

watcher = threading.Thread(target=watch, daemon=True)  # an error in loading is to end the program
watcher.start()
model = MoEForCausalLM.from_pretrained(sys.argv[2], quantization="nf4")
loading = False
watcher.join()
print(peak[0] - before, sum(tensor.nbytes for tensor in model.state_dict().values()) / 2**20)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_quantising_takes_the_memory_of_the_quantised_model_and_one_tensor(mixtral, tmp_path):
    shape = {"hidden_size": 512, "intermediate_size": 1792, "num_hidden_layers": 4, "num_local_experts": 8, "vocab_size": 1000}
    with torch.device("meta"):
        model = MixtralForCausalLM(MixtralConfig(**shape, num_attention_heads=8, num_key_value_heads=8))
    model = model.to_empty(device="cpu").to(torch.bfloat16)
    for parameter in model.parameters():  # what lay in memory may be no number, which is refused
        torch.nn.init.zeros_(parameter)
    model.save_pretrained(tmp_path)  # an expert at a time
    command = [sys.executable, "-c", MEASURE, str(mixtral), str(tmp_path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}).stdout
    peak, quantized = map(float, printed.split())
    tensor = model.model.layers[0].mlp.experts.gate_up_proj.nbytes / 2**20
    assert quantized < 60 and tensor == 28 and sum(p.nbytes for p in model.parameters()) / 2**20 > 170
    assert peak < quantized + tensor


@torch.no_grad()
def test_noise_is_left_out_of_a_model_without(adapters, run_compose, ids):
    folder = run_compose(adapters)
    expected = MoEForCausalLM.from_pretrained(folder)(ids).logits
    assert torch.equal(MoEForCausalLM.from_pretrained(folder, router_type="topk")(ids).logits, expected)


def test_dense_experts_do_not_fit_one_ffn_and_factors(mixtral):
    with pytest.raises(ValueError, match=r"does not fit the model: missing .*experts\.gate_proj.*unexpected .*w1\.weight"):
        MoEForCausalLM.from_pretrained(mixtral, expert_layout="lora", lora_rank=4)
