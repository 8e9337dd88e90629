import json
import shutil

import pytest
import torch
from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM

from model import MoEForCausalLM
from model.checkpoint import Checkpoint
from model.export import main
from model.output import check_manifest

from .conftest import SHAPE


def strictly(folder, **options) -> MixtralForCausalLM:
    """transformers' own model, if it finds every tensor and no other."""
    model, info = MixtralForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model


@torch.no_grad()
@pytest.mark.parametrize("quantize", ["none", "nf4"])
@pytest.mark.parametrize("layout", ["dense", "lora"])
def test_logits_are_transformers_mixtrals(adapters, run_compose, ids, tmp_path, layout, quantize):
    model = MoEForCausalLM.from_pretrained(run_compose(adapters, layout=layout, quantize=quantize))
    model.export_mixtral(tmp_path / "plain", torch.float32)
    torch.testing.assert_close(strictly(tmp_path / "plain")(ids).logits, model(ids).logits, atol=1e-5, rtol=0)
    assert AutoTokenizer.from_pretrained(tmp_path / "plain")("abc").input_ids == [5, 6, 7]
    check_manifest(tmp_path / "plain")


@torch.no_grad()
@pytest.mark.parametrize("router_type", ["topk", "noisy_topk", "softmax"])
def test_all_experts_is_a_top_k_too(mixtral, ids, tmp_path, router_type):
    model = MoEForCausalLM.from_pretrained(mixtral, router_type=router_type)
    model.export_mixtral(tmp_path / "plain", torch.float32)
    plain = strictly(tmp_path / "plain")
    assert plain.config.num_experts_per_tok == (4 if router_type == "softmax" else 2)
    torch.testing.assert_close(plain(ids).logits, model(ids).logits, atol=1e-5, rtol=0)


def test_names_do_not_depend_on_where_the_model_came_from(mixtral, tmp_path):
    MixtralForCausalLM.from_pretrained(mixtral).save_pretrained(tmp_path / "fused", save_original_format=False)
    exported = []
    for source in (mixtral, tmp_path / "fused"):
        exported.append(tmp_path / f"of-{source.name}")
        MoEForCausalLM.from_pretrained(source).export_mixtral(exported[-1], torch.float32)
    original, *found = (Checkpoint(folder) for folder in (mixtral, *exported))
    for checkpoint in found:
        assert set(checkpoint) == set(original)
        assert all(torch.equal(checkpoint.tensor(name), original.tensor(name)) for name in original)


def test_factors_are_merged_in_fp32_and_rounded_once(adapters, run_compose, tmp_path):
    folder = run_compose(adapters, layout="lora", dtype="bfloat16")
    MoEForCausalLM.from_pretrained(folder).export_mixtral(tmp_path / "plain")
    ours, plain = Checkpoint(folder), Checkpoint(tmp_path / "plain")
    prefix = "model.layers.1.mlp.experts.up_proj"
    w, a, b = (ours.tensor(prefix + suffix).double() for suffix in ("", "_lora_A", "_lora_B"))
    merged = plain.tensor("model.layers.1.block_sparse_moe.experts.2.w3.weight")
    exact = w + b[2] @ a[2]
    assert merged.dtype == torch.bfloat16 and (merged != exact.bfloat16()).float().mean() < 1e-3  # but where fp32 sums are on an edge
    assert (merged.double() - exact).abs().max() <= exact.abs().max() * 2**-8


def test_config_is_read_by_transformers_4_and_5(mixtral, tmp_path):
    scaling = {"rope_type": "linear", "factor": 2.0}
    model = MoEForCausalLM.from_pretrained(mixtral, rope_parameters={**scaling, "rope_theta": 777.0}, router_type="noisy_topk")
    model.export_mixtral(tmp_path / "plain")
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    expected = {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "rope_theta": 777.0,
        "rope_scaling": scaling,
        "rope_parameters": {**scaling, "rope_theta": 777.0},
        "torch_dtype": "bfloat16",
        "dtype": "bfloat16",
        "head_dim": 16,
        "num_experts_per_tok": 2,
    }
    assert {key: config.get(key) for key in expected} == expected
    assert not {"router_type", "expert_layout", "quantization", "expert_names"} & set(config)
    plain = strictly(tmp_path / "plain")
    assert plain.config.rope_parameters == expected["rope_parameters"] and plain.dtype == torch.bfloat16


@torch.no_grad()
def test_tied_embeddings_stay_tied(tmp_path, ids):
    model = MoEForCausalLM(MixtralConfig(**SHAPE | {"tie_word_embeddings": True}, num_local_experts=4)).eval()
    model.export_mixtral(tmp_path / "plain", torch.float32)
    assert "lm_head.weight" not in Checkpoint(tmp_path / "plain")
    torch.testing.assert_close(strictly(tmp_path / "plain")(ids).logits, model(ids).logits, atol=1e-5, rtol=0)


def test_what_mixtral_cannot_say_is_refused(mixtral, tmp_path):
    switch = MoEForCausalLM.from_pretrained(mixtral, router_type="switch")
    with pytest.raises(ValueError, match="router_type is 'switch'"):
        switch.export_mixtral(tmp_path / "plain")
    odd = MoEForCausalLM.from_pretrained(mixtral)
    odd.model.layers[0].self_attn.extra = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match=r"nothing like model\.layers\.0\.self_attn\.extra"):
        odd.export_mixtral(tmp_path / "plain")
    assert not any(tmp_path.iterdir())


@torch.no_grad()
@pytest.mark.parametrize("layout", ["dense", "lora"])
def test_what_is_offloaded_to_the_disk_is_exported_too(adapters, run_compose, ids, tmp_path, layout):
    folder = run_compose(adapters, layout=layout)
    devices = dict.fromkeys(("model.embed_tokens", "model.layers.0", "model.rotary_emb"), "cpu")
    devices |= dict.fromkeys(("model.layers.1", "model.norm", "lm_head"), "disk")
    model = MoEForCausalLM.from_pretrained(folder, device_map=devices, offload_folder=tmp_path / "offloaded")
    assert model.lm_head.weight.device.type == "meta"
    model.export_mixtral(tmp_path / "plain", torch.float32)
    expected = MoEForCausalLM.from_pretrained(folder)(ids).logits
    torch.testing.assert_close(strictly(tmp_path / "plain")(ids).logits, expected, atol=1e-5, rtol=0)
    assert model.lm_head.weight.device.type == "meta"  # still


@pytest.mark.parametrize("layout", ["dense", "lora"])
def test_what_the_dtype_cannot_hold_is_refused(adapters, run_compose, tmp_path, layout):
    model = MoEForCausalLM.from_pretrained(run_compose(adapters, layout=layout))
    experts = model.model.layers[0].mlp.experts
    with torch.no_grad():
        (experts.down_proj if layout == "dense" else experts.down_proj_lora_B)[1] *= 1e9
    with pytest.raises(ValueError, match=r"0\.block_sparse_moe\.experts\.1\.w2\.weight of the exported model, in float16, has values"):
        model.export_mixtral(tmp_path / "plain", torch.float16)
    assert not (tmp_path / "plain").exists()


def run_main(monkeypatch, *arguments) -> int:
    monkeypatch.setattr("sys.argv", ["export", *map(str, arguments)])
    return main()


@torch.no_grad()
def test_command(adapters, run_compose, tmp_path, ids, monkeypatch, capsys):
    folder, out = run_compose(adapters, quantize="nf4"), tmp_path / "plain"
    assert run_main(monkeypatch, "--model", folder, "--out", out, "--dtype", "float32") == 0
    expected = MoEForCausalLM.from_pretrained(folder)(ids).logits
    torch.testing.assert_close(strictly(out)(ids).logits, expected, atol=1e-5, rtol=0)
    assert json.loads((out / "run.json").read_text())["model"] == str(folder)
    cases = [
        (["--model", folder, "--out", out], "exists; name another"),
        (["--model", tmp_path / "none", "--out", tmp_path / "new"], "none is neither a folder nor"),
        (["--model", adapters[0].parent / "base", "--out", tmp_path / "new"], "is a 'mistral' model"),
    ]
    for arguments, message in cases:
        assert run_main(monkeypatch, *arguments) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "new").exists()


def test_nothing_is_left_when_the_disk_is_full(mixtral, tmp_path, monkeypatch):
    model = MoEForCausalLM.from_pretrained(mixtral)
    real = shutil.copyfile
    monkeypatch.setattr("model.checkpoint_writer.save_file", lambda tensors, path, **_: real("/dev/zero", "/dev/full"))
    with pytest.raises(OSError, match="No space left"):
        model.export_mixtral(tmp_path / "plain")
    assert not any(tmp_path.iterdir())
