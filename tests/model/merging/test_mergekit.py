"""Every tensor of a merge is mergekit's, in each method, precision, and form of the file."""

import re
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from model.merging import parallel
from model.merging.methods import METHODS

from .conftest import HALVES, check_equal, entry, make_config, run_mergekit

EXTRAS = [{}, {"parameters": {"normalize": True, "lambda": 0.7, "rescale": True, "int8_mask": True}}]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["linear", "slerp", "task_arithmetic", "ties", "breadcrumbs", "breadcrumbs_ties"])
def test_every_tensor_is_mergekits(models, merge, tmp_path, method, dtype):
    for index, extra in enumerate(EXTRAS if method not in ("linear", "slerp") else [{}, {"dtype": "float32", "out_dtype": "float16"}]):
        config = make_config(method, models[dtype], **extra)
        check_equal(merge(config, out=f"ours-{index}"), run_mergekit(config, tmp_path / f"theirs-{index}"))


@pytest.mark.parametrize(("dtype", "out_dtype"), [("torch.float64", None), ("float16", "torch.float64"), (None, "float64")])
@pytest.mark.parametrize("method", ["linear", "slerp", "ties", "breadcrumbs", "dare_linear", "della"])
def test_every_precision_is_mergekits(models, merge, tmp_path, same_masks, method, dtype, out_dtype):
    """Its spelling `torch.float64`, too; and models that are stored so."""
    folders, extra = models["bfloat16" if dtype else "float64"], {"dtype": dtype, "out_dtype": out_dtype}
    config = make_config(method, folders, **{key: value for key, value in extra.items() if value})
    out = merge(config)
    check_equal(out, run_mergekit(config, tmp_path / "theirs"))


@pytest.mark.parametrize("method", ["linear", "slerp", "ties", "breadcrumbs"])
def test_tensors_in_many_blocks_are_mergekits(models, merge, tmp_path, monkeypatch, method):
    """Slerp's pieces are as large as mergekit's, as the order of a sum decides its last bits."""
    monkeypatch.setattr(parallel, "BLOCK", 1000)
    config = make_config(method, models["bfloat16"])
    check_equal(merge(config), run_mergekit(config, tmp_path / "theirs"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_with_the_same_masks_every_tensor_is_mergekits(models, merge, tmp_path, same_masks, method, dtype):
    config = make_config(method, models[dtype])
    check_equal(merge(config), run_mergekit(config, tmp_path / "theirs"))


@pytest.mark.parametrize(
    "normalize", [[False, True], [True, False, True], [1, 0], [{"filter": "mlp", "value": [True, False]}, {"value": 0.0}]]
)
def test_a_gradient_of_truth_values_has_mergekits_steps(models, merge, tmp_path, normalize):
    base, a, b, _ = models["float32"]
    slices = [{"sources": [{**entry(model), "layer_range": [0, 2]} for model in (base, a, b)]}] * 2
    config = {"merge_method": "task_arithmetic", "base_model": str(base), "slices": slices}
    config["parameters"] = {"weight": 0.7, "normalize": normalize}
    check_equal(merge(config), run_mergekit(config, tmp_path / "theirs"))


@pytest.mark.parametrize("method", ["ties", "linear", "slerp"])
def test_a_model_listed_twice_is_refused_as_by_mergekit(models, merge, tmp_path, capsys, method):
    base, a, *_ = models["float32"]
    config = {"merge_method": method, "base_model": str(base), "models": [entry(base)], "parameters": {"weight": 0.5, "t": 0.5}}
    config["models"] += [entry(a), entry(a)] if method != "slerp" else [entry(base)]
    assert merge(config) == 2
    assert f"{str(base if method == 'slerp' else a)!r} is listed 2 times in one slice" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"merge.yml"}
    with pytest.raises(ValueError, match="Duplicate merge inputs"):
        run_mergekit(config, tmp_path / "theirs")


@pytest.mark.parametrize("method", ["ties", "passthrough", "linear"])
def test_slices_are_mergekits(models, merge, tmp_path, method):
    """Layers shifted, stacked and left out; parameters of a slice's source before those of the slice, the module and all."""
    base, a, b, _ = models["float32"]
    slices: list[dict] = [
        {"sources": [{**entry(base), **HALVES[1]}, {**entry(a, weight=[0.2, 0.6]), **HALVES[0]}, {**entry(b), **HALVES[1]}]},
        {"sources": [{**entry(a), "layer_range": [0, 2]}, {**entry(base), "layer_range": [0, 2]}], "parameters": {"weight": [0.4, 0.8]}},
    ]
    if method == "passthrough":
        scaled = entry(a, scale=[{"filter": "down_proj", "value": 0.5}, {"value": 1.0}])
        slices = [{"sources": [{**entry(b), **HALVES[1]}]}, {"sources": [{**scaled, "layer_range": [0, 2]}]}]
    modules = {"default": {"slices": slices, "parameters": {"weight": 0.7}}}
    config = {"merge_method": method, "base_model": str(base), "modules": modules, "parameters": {"weight": 0.1, "density": 0.6}}
    out = merge(config)
    check_equal(out, run_mergekit(config, tmp_path / "theirs"))
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == 3


@pytest.mark.parametrize("method", ["ties", "slerp"])
def test_a_slice_may_have_a_base_of_its_own(models, merge, tmp_path, method):
    base, a, b, _ = models["float32"]
    pairs = zip(HALVES, ((base, a), (base, b)), strict=True)
    slices = [{"sources": [{**entry(first), **half}, {**entry(second), **half}]} for half, (first, second) in pairs]
    slices[1]["base_model"] = str(b)
    shared = {"weight": 0.6, "density": 0.5} if method == "ties" else {"t": 0.3}
    config = {"merge_method": method, "base_model": str(base), "slices": slices, "parameters": shared}
    check_equal(merge(config), run_mergekit(config, tmp_path / "theirs"))


def test_every_method_of_mergekits_is_taken_or_documented_as_not():
    pytest.importorskip("mergekit")
    from mergekit.merge_methods import registered_methods

    not_taken = (Path(__file__).parents[3] / "docs" / "merging.md").read_text().partition("not taken: the methods")[2].partition(";")[0]
    assert {method.spec.name for method in registered_methods()} == METHODS.keys() | set(re.findall(r"`(\w+)`", not_taken))
