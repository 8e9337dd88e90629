"""`python -m model.merge` as a command: its examples, flags, messages and errors."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoTokenizer, MistralForCausalLM

from model.checkpoint import Checkpoint
from model.load import load_model
from model.output import check_manifest

from .conftest import entry, make_config

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("merge_*.yml")), ids=lambda path: path.stem)
def test_examples_run(example, base, make_adapter, merge, tmp_path, ids):
    for index, lang in enumerate(["python", "java", "javascript", "cpp"]):
        make_adapter(tmp_path / f"expert-{lang}", seed=index)
    path = tmp_path / "merge.yml"
    path.write_text(example.read_text().replace("BASE", str(base)).replace("RUNS", str(tmp_path)))
    out = merge(path)
    check_manifest(out)
    model, tokenizer = load_model(out)
    assert torch.isfinite(model(ids).logits).all() and tokenizer.get_vocab() == AutoTokenizer.from_pretrained(base).get_vocab()
    run = json.loads((out / "run.json").read_text())
    assert run["method"] == yaml.safe_load((out / "mergekit_config.yml").read_text())["merge_method"]


@pytest.mark.parametrize("method", ["dare_ties", "della", "ties", "breadcrumbs_ties"])
def test_densities_of_nothing_and_all(models, merge, method):
    """Nothing is the base; all is the task vectors as they are."""
    base, a, *_ = models["float32"]
    for density in (0, 1):
        config = {"merge_method": method, "base_model": str(base), "models": [entry(a, weight=1, density=density)]}
        found, expected = Checkpoint(merge(config, out=f"{density}")), Checkpoint((base, a)[density])
        for name in expected:
            torch.testing.assert_close(found.tensor(name), expected.tensor(name), atol=1e-6, rtol=0)


def test_the_seed_decides_the_mask(models, merge):
    config = make_config("dare_linear", models["float32"])
    first, again, other = (Checkpoint(merge(config, "--seed", seed, out=name)) for name, seed in (("a", "1"), ("b", "1"), ("c", "2")))
    assert all(torch.equal(first.tensor(name), again.tensor(name)) for name in first)
    assert not any(torch.equal(first.tensor(name), other.tensor(name)) for name in first if "proj" in name)


def test_mergekits_flag_for_less_memory_is_taken(models, merge):
    for flag in ("--low-memory", "--low-cpu-memory"):
        assert (merge(make_config("linear", models["float32"]), flag, out=flag.strip("-")) / "config.json").is_file()


def test_what_has_no_effect_is_reported(models, merge, capsys):
    """A misspelt filter, and a parameter of another method."""
    t = [{"filter": "self_atn", "value": 1}, {"value": 0.5}]
    merge({**make_config("slerp", models["float32"]), "parameters": {"t": t, "density": 0.5}})
    said = capsys.readouterr().err
    assert "the filter 'self_atn' of t occurs in no tensor's name" in said and "density has no effect on slerp" in said
    merge(make_config("slerp", models["float32"]), out="right")
    assert "the filter" not in capsys.readouterr().err


def test_the_last_line_names_what_was_merged_and_the_dtype(models, merge, capsys):
    """The base of task vectors is not one of the merged; of slerp it is."""
    base, a, b, c = models["float32"]
    out = merge(make_config("ties", [base, a, b, c]))
    assert capsys.readouterr().out == f"{out}: ties of {a}, {b}, {c} onto {base}, 0.00 GB of float32\n"
    out = merge(make_config("slerp", [base, a, b, c]), out="slerp")
    assert capsys.readouterr().out == f"{out}: slerp of {base}, {a}, 0.00 GB of float32\n"


@pytest.mark.parametrize("cut_short", [False, True], ids=["at once", "gone on with"])
def test_a_merge_that_overflows_keeps_nothing(models, merge, tmp_path, monkeypatch, capsys, cut_short):
    """The same command would fail again, at the end of all its work; also where earlier shards are finished."""
    monkeypatch.setattr("model.merge.SHARD_BYTES", 1 << 14)
    weight = [{"filter": "layers.1.mlp", "value": 1e7}, {"value": 1}]
    config = make_config("task_arithmetic", models["float32"]) | {"out_dtype": "float16"}
    config["models"] = [entry(model, weight=weight) for model in models["float32"][1:]]
    if cut_short:
        with monkeypatch.context() as patch, pytest.raises(KeyError):
            patch.setattr("model.merge.check_finite", stop_at("model.layers.1.mlp.down_proj.weight"))
            merge(config)
        assert {path.name for path in tmp_path.iterdir()} == {"merge.yml", ".out.unfinished"}
    assert merge(config) == 2
    said = capsys.readouterr().err
    assert "model.layers.1.mlp.down_proj.weight of the merged model, in float16, has values that are infinite" in said
    assert {path.name for path in tmp_path.iterdir()} == {"merge.yml"}


def stop_at(name):
    """In place of a check: an error at the tensor `name`."""

    def check(tensor, where, _):
        if where.startswith(name):
            raise KeyError(name)
        return tensor

    return check


def test_mistakes_end_with_status_2_and_leave_nothing(models, with_more_tokens, mixtral, merge, tmp_path, capsys):
    base, a, b, c = models["float32"]
    odd = tmp_path / "models" / "odd"
    shutil.copytree(a, odd)
    settings = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps({**settings, "rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}))
    short = tmp_path / "models" / "short"
    MistralForCausalLM.from_pretrained(a, num_hidden_layers=1).save_pretrained(short)
    high = {"sources": [{**entry(a), "layer_range": [1, 3]}]}
    linear = {"merge_method": "linear", "parameters": {"weight": 1}}
    cases: list = [
        (make_config("linear", [base, a, b, tmp_path / "none"]), "none is neither a folder nor a model in the local hub cache"),
        (make_config("linear", [base, a, b, mixtral]), "is a 'mixtral' model; models to be merged must be one of"),
        (make_config("linear", [base, a, b, odd]), "odd has rope_parameters ="),
        (make_config("linear", [base, a, b, short]), "short have not the same tensors: only one has model.layers.1."),
        (make_config("linear", [base, a, b, with_more_tokens[0]]), "tokenizer_source: base (or union) aligns vocabularies"),
        ({**linear, "models": [entry(a), entry(b, weight=-1)]}, "add up to 0, so they cannot be normalized"),
        ({**linear, "parameters": {}, "models": [entry(a)]}, "has no weight for lm_head.weight; give it under `parameters`"),
        ({"merge_method": "passthrough", "slices": [high]}, "has no model.layers.2.input_layernorm.weight, which is to go into"),
        (
            make_config("ties", [base, a, b, c], parameters={"density": 0.5}) | {"models": [entry(a, weight=1, density=1.5)]},
            "density is 1.5 for",
        ),
        ({**make_config("breadcrumbs", [base, a, b, c]), "models": [entry(a, weight=1, gamma=1.5)]}, "gamma is 1.5 for"),
        ({**make_config("della", [base, a, b, c]), "models": [entry(a, weight=1, density=0.9)]}, "density 0.9 ± epsilon 0.15 for"),
    ]
    inspected = {
        "merge_method": "ties",
        "base_model": str(base),
        "models": [entry(with_more_tokens[0], weight=1)],
        "tokenizer_source": "base",
    }
    cases = [(config, message, []) for config, message in cases]
    cases += [
        (inspected, "more-0 has no lm_head.weight of the shape that", ["--inspect"]),
        (
            {**linear, "models": [entry(a)]},
            "task vectors are differences from a base: give base_model, in a copy of the file if",
            ["--inspect"],
        ),
        (make_config("linear", [base, a, b, c]), "--density is 0; it must be above 0", ["--inspect", "--density", "0"]),
        (make_config("ties", [base, a, b, c]), "--density is 7, but it is of --inspect alone", ["--density", "7"]),
    ]
    for config, message, flags in cases:
        assert merge(config, *flags) == 2
        assert message in capsys.readouterr().err
        assert {path.name for path in tmp_path.iterdir()} == {"merge.yml", "models"}
