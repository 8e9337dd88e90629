"""The plan's bytes against the tensors of a model that is loaded, and its arithmetic against figures worked out by hand."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache, MixtralForCausalLM

from model import MoEForCausalLM
from model.configuration_moe import MoEConfig
from model.footprint import EXPERTS, LORA, SHARED, step_bytes, token_time, weight_bytes
from model.plan import advice, config_of, main, plan_mixture
from moe_kernels.cards import A10G, CARDS, Card

MEASURED = ("expert weights", "shared base", "LoRA factors", "attention", "embeddings, head", "norms and gates")


def without_dtype(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    kept = {name: value for name, value in settings.items() if name not in ("dtype", "torch_dtype")}
    (folder / "config.json").write_text(json.dumps(kept))


def bytes_of(model) -> int:
    """Every parameter and buffer once."""
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in [*model.parameters(), *model.buffers()]}
    return sum(tensors.values())


@torch.no_grad()
@pytest.mark.parametrize("quantize", ["none", "nf4"])
@pytest.mark.parametrize("layout", ["dense", "lora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_and_cache_are_what_loading_takes(adapters, run_compose, ids, layout, quantize, dtype):
    folder = run_compose(adapters, layout=layout, quantize=quantize, dtype=dtype)
    model = MoEForCausalLM.from_pretrained(folder)
    cache = DynamicCache(config=model.config)
    model(ids, past_key_values=cache, use_cache=True)
    measured_cache = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    parts = plan_mixture(config_of(str(folder), None, None, 1), "a10g", context=ids.shape[1], batch=ids.shape[0]).parts
    assert parts["KV cache"] == measured_cache
    assert sum(parts.get(name, 0) for name in MEASURED) == pytest.approx(bytes_of(model), rel=0.001)


@pytest.mark.parametrize("quantize", [None, "nf4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_without_a_dtype_in_the_config_the_weights_dtype_counts(tmp_path, dtype, quantize):
    """As in transformers' Mixtral. A plan in fp32 for weights in bf16 would be twice what is loaded."""
    MoEForCausalLM._from_config(MoEConfig(**_tiny()), dtype=dtype).export_mixtral(tmp_path / "model", dtype=dtype)
    without_dtype(tmp_path / "model")
    planned = config_of(str(tmp_path / "model"), None, quantize, 1)
    model = MoEForCausalLM.from_pretrained(tmp_path / "model", quantize=quantize)
    assert model.dtype == MixtralForCausalLM.from_pretrained(tmp_path / "model").dtype == dtype
    weights = [size for name, size in plan_mixture(planned, "a10g", 8, 1).parts.items() if name in MEASURED]
    assert sum(weights) == pytest.approx(bytes_of(model), rel=0.001)


@torch.no_grad()
@pytest.mark.parametrize("others", [{}, {"num_shared_experts": 1}, {"attention_experts": ["q_proj", "o_proj"], "attention_lora_rank": 8}])
@pytest.mark.parametrize("quantize", ["none", "nf4"])
@pytest.mark.parametrize("layout", ["dense", "lora"])
def test_footprint_of_shared_and_attention_experts(tmp_path, ids, layout, quantize, others):
    lora = {"expert_layout": layout, "lora_rank": 8 if layout == "lora" else 0}
    config = MoEConfig(**_tiny(hidden_size=256, intermediate_size=512, vocab_size=512), **lora, **others, dtype="bfloat16")
    MoEForCausalLM._from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path)
    model = MoEForCausalLM.from_pretrained(tmp_path, quantize=quantize)
    cache = DynamicCache(config=model.config)
    model(ids, past_key_values=cache, use_cache=True)
    planned = plan_mixture(config_of(str(tmp_path), None, quantize, 8), "cpu", context=ids.shape[1], batch=ids.shape[0]).parts
    weights = sum(size for name, size in planned.items() if name not in ("KV cache", "activations", "runtime"))
    assert weights == pytest.approx(bytes_of(model), rel=0.001)
    assert weights == pytest.approx(model.get_memory_footprint(), rel=0.05)
    assert planned["KV cache"] == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def test_every_token_reads_shared_experts_and_attentions_factors():
    """One of four routed experts is chosen; the shared one, and in attention all experts' factors, are read whatever the gate says."""
    lora = {"attention_experts": ["q_proj"], "attention_lora_rank": 8}
    config = MoEConfig(**_tiny(), num_shared_experts=1, num_experts_per_tok=1, **lora)
    parts = weight_bytes(config)
    assert parts["expert weights"] == 4 * parts["shared experts"] == 4 * 2 * 3 * 64 * 128 * 4
    assert parts["attention LoRA"] == 2 * 5 * 8 * (64 + 64) * 4
    unread = 3 / 4 * parts["expert weights"] + parts["embeddings, head"] / 2
    cache = 10 * 2 * 2 * 2 * 16 * 4
    assert step_bytes(config, 10, 1) == pytest.approx(sum(parts.values()) - unread + cache)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process's memory from /proc")
@pytest.mark.parametrize("layout", ["dense", "lora"])
def test_the_peak_of_loading_and_generating(tmp_path, layout):
    """In a process of its own, above what a tiny mixture takes there; freed blocks are given back, or the heap's holes would count."""
    hidden, lora = (4096, {}) if layout == "dense" else (12288, {"expert_layout": "lora", "lora_rank": 8})
    shape = _tiny(hidden_size=512, intermediate_size=hidden, num_hidden_layers=6, vocab_size=512) | lora
    for name, settings in (("large", shape), ("small", _tiny() | lora)):
        config = MoEConfig(**settings, dtype="bfloat16")
        MoEForCausalLM._from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path / name)
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, str(Path(__file__).with_name("measure_peak.py")), tmp_path / "small", tmp_path / "large", "512"]
    peak = int(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    planned = plan_mixture(config_of(str(tmp_path / "large"), None, None, 1), "cpu", context=512, batch=1)
    assert planned.total - planned.parts["runtime"] == pytest.approx(peak, rel=0.05)


def test_advice_names_only_what_is_not_yet_so():
    assert advice(config_of("mistral-7b-x4", "dense", "none", 16)).startswith("try --layout lora, --quantize nf4")
    assert "--layout" not in advice(config_of("mistral-7b-x4", "lora", "nf4", 16))


def test_of_tied_embeddings_there_is_one(mixtral):
    sizes = [weight_bytes(MoEConfig(**_tiny(tie_word_embeddings=tied)))["embeddings, head"] for tied in (False, True)]
    assert sizes == [2 * 64 * 64 * 4, 64 * 64 * 4]


def test_a_mixtral_of_others_and_what_it_would_be_otherwise(mixtral):
    config = config_of(str(mixtral), None, None, 16)
    assert (config.expert_layout, config.quantization, config.router_type) == ("dense", None, "topk")
    assert weight_bytes(config)[EXPERTS] == 2 * 4 * 3 * 64 * 128 * 4
    parts = weight_bytes(config_of(str(mixtral), "lora", "nf4", 8))
    assert parts[LORA] == 2 * 4 * 3 * 8 * (64 + 128) * 4 and EXPERTS not in parts
    assert parts[SHARED] == 2 * 3 * (64 * 128 // 2 + 128 + 4)  # 128 blocks and one group


def test_a_recipe_is_planned_as_compose_would_make_it(adapters, make_recipe, run_compose):
    planned = weight_bytes(config_of(str(make_recipe(adapters)), None, None, 1))
    assert planned == weight_bytes(MoEForCausalLM.from_pretrained(run_compose(adapters, quantize="nf4")).config)


def test_4x7b_against_the_figures_of_the_literature():
    """22.55 G expert parameters at 4.127 bits are 11.63 GB; in bf16 the whole is 48.3 GB, and the cache 128 KiB a token."""
    dense, whole = (config_of("mistral-7b-x4", "dense", quantize, 16) for quantize in ("nf4", "none"))
    assert weight_bytes(dense)[EXPERTS] == pytest.approx(22.548e9 * 4.127 / 8, rel=1e-4)
    assert sum(weight_bytes(whole).values()) == pytest.approx(48.3e9, rel=1e-3)
    assert plan_mixture(whole, "a10g", context=1000, batch=3).parts["KV cache"] == 3000 * 128 * 1024


def test_a_step_reads_what_its_tokens_meet():
    dense = config_of("mistral-7b-x4", "dense", "nf4", 16)
    parts = weight_bytes(dense)
    others = sum(parts.values()) - parts[EXPERTS] - 32000 * 4096 * 2  # the head is read, the table of embeddings is not
    cache = 1000 * 128 * 1024
    assert step_bytes(dense, 1000, 1) == pytest.approx(others + cache + parts[EXPERTS] / 2)  # 2 of 4 experts
    assert step_bytes(dense, 1000, 2) == pytest.approx(others + 2 * cache + parts[EXPERTS] * 3 / 4)  # 1 - (1/2)^2 of them
    lora = config_of("mistral-7b-x4", "lora", "nf4", 16)
    assert step_bytes(lora, 1, 1) < sum(weight_bytes(lora).values()) < step_bytes(dense, 1, 1)
    slow = Card("slow", 86, 1e12, dram=1e9, gemm=1e15, dram_share=0.5)
    assert token_time(dense, slow, 1000, 1).memory == pytest.approx(step_bytes(dense, 1000, 1) / 0.5e9)
    assert token_time(dense, A10G, 4096, 1).seconds > token_time(dense, A10G, 4096, 1).floor


def run(monkeypatch, *arguments) -> int:
    monkeypatch.setattr("sys.argv", ["plan", *map(str, arguments)])
    return main()


def test_the_command(monkeypatch, capsys, tmp_path, base):
    for card in (*CARDS, "cpu"):
        assert run(monkeypatch, "--config", "tinyllama-1.1b-x4", "--gpu", card) == 0
        assert "tokens/s" in capsys.readouterr().out
    assert run(monkeypatch, "--config", "mistral-7b-x4", "--gpu", "a10g", "--layout", "dense", "--quantize", "none") == 2
    captured = capsys.readouterr()
    assert "expert weights       45.097 GB" in captured.out
    assert "this mixture takes 49.8 GB and one a10g has 23.7 GB; the largest part is expert weights" in captured.err
    for flags, message in (
        (["--config", "mistral-x4"], "mistral-x4 is neither a folder, a recipe"),
        (["--config", base], "is a 'mistral' model; expected"),
        (["--config", "mistral-7b-x4", "--gpu", "tpu"], "unknown card 'tpu'; known: auto, cpu, t4"),
        (["--config", "mistral-7b-x4", "--context", 0], "--context is 0; it must be at least 1"),
    ):
        assert run(monkeypatch, *flags) == 2
        assert message in capsys.readouterr().err


def _tiny(**changes):
    return {
        **{"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"num_key_value_heads": 2, "num_local_experts": 4, **changes},
    }


def test_a_count_of_experts_that_no_mixture_has_is_refused():
    assert config_of("mistral-7b-x1024", None, None, 16).num_local_experts == 1024
    with pytest.raises(ValueError, match="mistral-7b-x99999 has 99999 experts; there may be 1024"):
        config_of("mistral-7b-x99999", None, None, 16)


def test_a_plan_takes_no_memory_of_its_weights():
    config = config_of("mistral-7b-x1024", "dense", "none", 16)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(
        resource.RLIMIT_AS, (int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + (4 << 30), hard)
    )
    try:
        assert weight_bytes(config)[EXPERTS] == 2 * 32 * 1024 * 3 * 4096 * 14336
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
