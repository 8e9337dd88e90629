"""A merge's YAML file: what each parameter is for each tensor, and which mistakes are named."""

import math

import pytest
import torch
import yaml

from model.merging.config import read_merge_config, unmatched_filters, unused_parameters
from model.merging.parameters import parse_rules, resolve


def value(raw, tensor="model.layers.0.mlp.up_proj.weight", position=0.0):
    return resolve([{"t": parse_rules(raw, "t")}], "t", tensor, position)


def test_a_gradient_is_interpolated_between_the_first_layer_and_the_last():
    assert [value([0, 1, 0.5], position=t) for t in (0, 0.25, 0.5, 0.75, 1)] == [0, 0.5, 1, 0.75, 0.5]
    assert value([0.4], position=0.7) == 0.4
    assert value(["1e-3", 1]) == 1e-3  # YAML 1.1 reads 1e-3 as a text


def test_the_first_filter_that_occurs_in_the_name_holds():
    raw = [{"filter": "self_attn", "value": [0, 1]}, {"filter": "layers.1.", "value": 0.3}, {"value": 0.5}]
    names = {
        "model.layers.1.self_attn.q_proj.weight": 1.0,
        "model.layers.1.mlp.up_proj.weight": 0.3,
        "model.layers.11.mlp.up_proj.weight": 0.5,
    }
    assert {name: value(raw, name, 1.0) for name in names} == names
    assert value([{"filter": "*", "value": 2}]) == 2


def test_a_level_without_a_rule_for_the_tensor_leaves_it_to_the_next():
    levels = [{}, {"t": parse_rules([{"filter": "mlp", "value": 1}], "t")}, {"t": parse_rules(2, "t")}, {"t": parse_rules(3, "t")}]
    assert [resolve(levels, "t", name, 0.0) for name in ("model.layers.0.mlp.up_proj.weight", "lm_head.weight")] == [1, 2]
    assert resolve(levels, "weight", "lm_head.weight", 0.0) is None


def test_truth_values_are_not_interpolated():
    rule = {"t": parse_rules([True, False, 1, 0], "t", boolean=True)}
    assert [resolve([rule], "t", "", at) for at in (0, 0.3, 0.34, 0.5, 0.67, 0.99, 1)] == [True, True, False, False, True, True, False]


@pytest.fixture
def read(tmp_path):
    def read(**changes):
        raw = {"merge_method": "ties", "base_model": "base", "models": [{"model": "a", "parameters": {"weight": 1}}], **changes}
        path = tmp_path / "merge.yml"
        path.write_text(yaml.safe_dump({key: value for key, value in raw.items() if value is not None}))
        return read_merge_config(path)

    return read


def test_the_base_need_not_be_listed(read):
    assert [source.model for source in read().slices[0].inputs] == ["a", "base"]
    assert read(models=[{"model": "base"}, {"model": "a"}]).models == ["base", "a"]


def test_parameters_of_other_methods_are_reported_and_not_refused(read):
    assert unused_parameters(read(parameters={"t": 0.5, "int8_mask": True, "density": [0.1, 0.2]})) == ["t"]


def test_filters_that_occur_in_no_name_are_reported(read):
    """Of every level, whichever rule would have come first."""
    weight = [{"filter": "self_atn", "value": 1}, {"filter": "self_attn", "value": 0.5}, {"filter": "*", "value": 0}]
    config = read(parameters={"weight": weight, "density": [{"filter": "mpl", "value": 1}]}, models=[{"model": "a", "parameters": {}}])
    names = ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight"]
    assert unmatched_filters(config, names) == [("density", "mpl"), ("weight", "self_atn")]
    own = read(models=[{"model": "a", "parameters": {"weight": [{"filter": "lm_hed", "value": 1}, {"value": 1}]}}])
    assert unmatched_filters(own, names) == [("weight", "lm_hed")]


def test_thinning_is_a_parameter_of_methods_that_thin(read):
    thinning = {"parameters": {"density": 0.5, "rescale": True}}
    assert unused_parameters(read(merge_method="task_arithmetic", **thinning)) == ["density", "rescale"]
    for method in ("ties", "dare_linear", "della", "breadcrumbs"):
        assert unused_parameters(read(merge_method=method, **thinning)) == []


@pytest.mark.parametrize("name", ["float64", "float32", "bfloat16", "float16"])
def test_dtypes_may_be_written_as_torchs(read, name):
    assert read(dtype=name, out_dtype=f"torch.{name}").dtype == read(out_dtype=f"torch.{name}").out_dtype == getattr(torch, name)


SOURCES = [{"model": "base", "layer_range": [0, 2]}, {"model": "a", "layer_range": [1, 4]}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"merge_method": "tise"}, "merge_method is 'tise'; did you mean 'ties'?"),
        ({"merge_method": "karcher"}, "merge_method is 'karcher'; allowed: linear, slerp, passthrough, task_arithmetic, ties, "),
        ({"merge_metod": "ties"}, "unknown key 'merge_metod'; did you mean 'merge_method'?"),
        ({"parameters": {"wieght": 1}}, "parameters: unknown key 'wieght'; did you mean 'weight'?"),
        ({"models": [{"model": "a", "parameters": {"densty": 1}}]}, "model 0: parameters: unknown key 'densty'; did you mean 'density'?"),
        ({"parameters": {"weight": "heavy"}}, "weight holds 'heavy', which is not a number"),
        ({"parameters": {"weight": math.nan}}, "weight holds nan, which is not a finite number"),
        ({"parameters": {"density": [1, -math.inf]}}, "density holds -inf, which is not a finite number"),
        ({"parameters": {"weight": []}}, "weight is an empty list"),
        ({"parameters": {"weight": [{"fitler": "mlp", "value": 1}]}}, "weight has the entry {'fitler': 'mlp', 'value': 1}"),
        ({"base_model": None}, "merge_method 'ties' needs a base_model"),
        ({"merge_method": "slerp", "models": [{"model": "a"}, {"model": "b"}]}, "'slerp' takes 2 models, the base among them, not 3"),
        ({"models": None}, "must have exactly one of models and slices"),
        ({"slices": [{"sources": SOURCES[:1]}]}, "must have exactly one of models and slices"),
        ({"models": None, "slices": [{"sources": SOURCES}]}, "different numbers of layers: [0, 2], [1, 4]"),
        ({"models": None, "slices": [{"sources": SOURCES[1:]}]}, "slice 0 has no source from the base_model 'base'"),
        ({"models": None, "slices": [{"sources": [{"model": "a", "layer_range": [2, 2]}]}]}, "layer_range is [2, 2]; it must be"),
        ({"dtype": "bf16"}, "dtype is 'bf16'; did you mean 'bfloat16'?"),
        ({"out_dtype": "torch.int64"}, "out_dtype is 'torch.int64'; allowed: float32, bfloat16, float16, float64"),
        ({"dtype": ["float32"]}, "dtype is ['float32']; "),
        ({"parameters": {"normalize": 0.5}}, "normalize holds 0.5, which is neither true nor false"),
        ({"parameters": {"rescale": [True, "no idea"]}}, "rescale holds 'no idea', which is neither true nor false"),
        ({"models": [{"model": "a"}, {"model": "b"}, {"model": {"model": {"path": "a"}}}]}, "'a' is listed 2 times in one slice"),
        ({"tokenizer": {"source": "union", "tokens": {"a": {}}}}, "tokenizer.tokens is not supported"),
        ({"tokenizer": {"source": "base"}, "tokenizer_source": "base"}, "has both tokenizer and tokenizer_source"),
        ({"chat_template": "chatml"}, "chat_template is 'chatml'; it must be auto, or the text of a Jinja template"),
        ({"models": None, "modules": {"vision": {}}}, "modules: unknown key 'vision'; allowed: default"),
    ],
)
def test_mistakes_are_named(read, changes, message):
    with pytest.raises(ValueError) as error:
        read(**changes)
    assert message in str(error.value)
