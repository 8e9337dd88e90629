from pathlib import Path

import pytest
import yaml

from model.languages import LANGUAGES
from model.prompt import format_prompt
from model.recipe import read_recipe

EXAMPLE = Path(__file__).parents[2] / "examples" / "four_languages.yml"

FIRST = {"source_model": "a", "positive_prompts": ["x"]}
SECOND = {"source_model": "b", "positive_prompts": ["y"], "negative_prompts": ["x"]}
GOOD = {"base_model": "base", "experts": [FIRST, SECOND]}
LABELLED = [{"source_model": name, "lang": lang} for name, lang in (("a", "go"), ("b", "rust"))]
DATA = {"base_model": "base", "gate_mode": "data", "gate_data": "rows.jsonl", "experts": LABELLED}


def write(tmp_path, value):
    path = tmp_path / "recipe.yml"
    path.write_text(value if isinstance(value, str) else yaml.safe_dump(value))
    return path


def test_defaults_are_mergekits(tmp_path):
    recipe = read_recipe(write(tmp_path, GOOD))
    assert (recipe.gate_mode, recipe.dtype, recipe.experts_per_token) == ("hidden", None, 2)
    assert recipe.experts[1].prompts.positive == ("y",) and recipe.experts[1].prompts.negative == ("x",)


def test_the_dtype_may_be_written_as_torchs(tmp_path):
    assert read_recipe(write(tmp_path, {**GOOD, "dtype": "torch.bfloat16"})).dtype == "bfloat16"


def test_one_expert_is_all_that_a_token_takes(tmp_path):
    assert read_recipe(write(tmp_path, {**GOOD, "experts": [FIRST]})).experts_per_token == 1


def test_keys_of_mergekit_without_a_value_are_its_defaults(tmp_path):
    """mergekit writes null for what is not set, and takes an architecture in any case."""
    empty = dict.fromkeys(("negative_prompts", "noise_scale", "residual_scale"))
    recipe = read_recipe(
        write(tmp_path, {**GOOD, "experts": [{**FIRST, **empty}, SECOND], "shared_experts": None, "architecture": "Mixtral"})
    )
    assert recipe.experts[0].prompts.negative == () and not recipe.experts[0].is_changed and recipe.shared_experts == []


def test_data_needs_no_prompts(tmp_path):
    recipe = read_recipe(write(tmp_path, DATA))
    assert (recipe.gate_data, recipe.gate_rows, [expert.lang for expert in recipe.experts]) == ("rows.jsonl", 32, ["go", "rust"])


def test_uniform_random_needs_no_prompts(tmp_path):
    read_recipe(write(tmp_path, {**GOOD, "gate_mode": "uniform_random", "experts": [{"source_model": "a"}, {"source_model": "b"}]}))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({**GOOD, "gatemode": "hidden"}, "unknown key 'gatemode'; did you mean 'gate_mode'"),
        (
            {**GOOD, "experts": [{**FIRST, "nagative_prompts": []}]},
            "expert 0: unknown key 'nagative_prompts'; did you mean",
        ),
        ({**GOOD, "wholly": 1}, "unknown key 'wholly'; allowed: base_model, gate_mode"),
        ({**GOOD, "gate_mode": "hiden"}, "gate_mode is 'hiden'; allowed: hidden, cheap_embed, random, uniform_random, router_input, data$"),
        ({**GOOD, "experts_per_token": 3}, "experts_per_token is 3; it must be from 1 to the 2 experts"),
        ({**GOOD, "experts_per_token": "two"}, "experts_per_token is 'two'"),
        ({**GOOD, "dtype": ["float32"]}, r"recipe\.yml: dtype is \['float32'\]; did you mean 'float32'"),
        ({**GOOD, "dtype": "int8"}, "dtype is 'int8'; allowed"),
        (
            {**GOOD, "dtype": "torch.float64"},
            "dtype is 'float64', in which no mixture is computed: its kernels and NF4 take float32, bfloat16",
        ),
        ({**GOOD, "architecture": "qwen"}, "architecture is 'qwen'; only mixtral"),
        ({**GOOD, "experts": []}, "experts must be a list with at least one entry"),
        ({**GOOD, "shared_experts": "a"}, "shared_experts must be a list, not 'a'"),
        (
            {**GOOD, "shared_experts": [{"source_model": "a", "scale": 1}]},
            "shared expert 0: unknown key 'scale'; did you mean 'noise_scale'",
        ),
        ({**GOOD, "shared_experts": [{"source_model": "a", "residual_scale": "1"}]}, "residual_scale is '1'; it must be a number"),
        ({**GOOD, "experts": [FIRST, {**SECOND, "noise_scale": "loud"}]}, "expert 1: noise_scale is 'loud'; it must be a number"),
        ({**GOOD, "shared_experts": [{**FIRST}]}, "shared expert 0: unknown key 'positive_prompts'; allowed: source_model"),
        ({**GOOD, "experts_per_token": True}, "experts_per_token is True"),
        (
            {**GOOD, "gate_mode": "router_input", "experts": [FIRST, {"source_model": "b"}]},
            "expert 1 has no positive_prompts, which gate_mode",
        ),
        ({**GOOD, "gate_data": "rows.jsonl"}, "gate_data is given, but gate_mode is 'hidden'; only 'data' reads it"),
        ({**GOOD, "gate_rows": 8}, "gate_rows is given, but gate_mode is 'hidden'; only 'data' reads it"),
        ({**GOOD, "experts": [FIRST, {**SECOND, "lang": "go"}]}, "expert 1: lang is given, but gate_mode is 'hidden'"),
        ({**DATA, "gate_data": None}, "gate_mode 'data' needs gate_data, a file of JSON lines with the columns lang and text"),
        ({**DATA, "gate_rows": 1}, "gate_rows is 1; it must be a number of rows, at least 2"),
        ({**DATA, "experts": [FIRST, SECOND]}, "expert 0 has no lang, which gate_mode 'data' needs"),
        ({**DATA, "experts": [{**FIRST, "lang": "go"}] * 2}, "experts 0 and 1 both have the lang 'go'"),
        (
            {**GOOD, "experts": [{**FIRST, "source_model": {"path": "a"}}, SECOND]},
            "expert 0: source_model: unknown key 'path'; allowed: model",
        ),
        ({**GOOD, "base_model": {"model": "a", "override_architecture": "B"}}, "base_model: override_architecture is not supported"),
        ({**GOOD, "base_model": None}, "base_model must be a text, not None"),
        ({**GOOD, "experts": [{"source_model": "a"}, FIRST, SECOND]}, "expert 0 has no positive_prompts"),
        ({**GOOD, "experts": [FIRST] * 2}, "all experts have the same prompts"),
        ({**GOOD, "experts": [{"source_model": "a", "positive_prompts": "x"}]}, "positive_prompts must be a list of texts"),
        ("- a\n- b", "must be a mapping with the keys base_model"),
        ("a: [", "is not YAML"),
        ('base_model: "a\\ud800"', r"is not YAML: a text in it has the lone surrogate U\+D800"),
        ("base_model: a\ndtype: float32\n'base_model': b\n", "the key 'base_model' is repeated in .* line 3"),
    ],
)
def test_a_mistake_is_named_with_what_is_allowed(tmp_path, value, message):
    with pytest.raises(ValueError, match=message):
        read_recipe(write(tmp_path, value))


def test_a_key_that_another_mapping_brings_is_not_repeated(tmp_path):
    expert = "{source_model: b, <<: &again {<<: *first, noise_scale: 2}, lang: null}"
    text = f"base_model: base\ngate_mode: random\nexperts: [&first {{source_model: a, noise_scale: 1}}, {expert}, *again]\n"
    experts = read_recipe(write(tmp_path, text)).experts
    assert [(expert.source_model, expert.noise_scale) for expert in experts] == [("a", 1), ("b", 2), ("a", 2)]


def test_the_examples_prompts_start_as_training_prompts_do():
    experts = read_recipe(EXAMPLE).experts
    assert [expert.source_model.removeprefix("RUNS/expert-") for expert in experts] == list(LANGUAGES)
    for lang, expert in zip(LANGUAGES, experts, strict=True):
        head = format_prompt("", lang).splitlines(keepends=True)[0]
        assert expert.prompts.positive and all(prompt.startswith(head) for prompt in expert.prompts.positive)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.yml is missing"):
        read_recipe(tmp_path / "none.yml")
    with pytest.raises(IsADirectoryError, match="is a folder; a YAML file is wanted"):
        read_recipe(tmp_path)
