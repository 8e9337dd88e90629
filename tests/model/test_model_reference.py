"""How a YAML file names a model, against mergekit's own parser."""

import pytest
import yaml

from model.ingredients import open_recipe
from model.merging.opening import open_merge
from model.model_reference import model_field

TAKEN = [
    "a",
    "a/b",
    "a+b",
    {"model": "a"},
    {"model": {"path": "a"}},
    {"model": {"path": "a", "revision": None}, "lora": None, "override_architecture": None},
    {"model": "a", "lora": "b"},
    {"model": {"path": "a"}, "lora": {"path": "b/c"}},
    {"model": {"path": "a"}, "lora": "b"},
]
REFUSED_BY_BOTH = [
    None,
    3,
    ["a"],
    {},
    {"path": "a"},
    {"path": "a", "lora": {"path": "b"}},
    {"model": None},
    {"model": ["a"]},
    {"model": {}},
]
REFUSED_HERE = {  # what is not a folder of this disk, and keys that mergekit passes over
    "revision is 'main'; give the folder": {"model": {"path": "a", "revision": "main"}},
    "override_architecture is not supported": {"model": "a", "override_architecture": "B"},
    "unknown key 'lroa'; did you mean 'lora'": {"model": "a", "lroa": "b"},
    "unknown key 'pth'; did you mean 'path'": {"model": {"path": "a", "pth": "b"}},
}


@pytest.fixture(scope="module")
def parse():
    """mergekit's parser."""
    pytest.importorskip("mergekit")
    from mergekit.common import ModelReference

    return ModelReference.model_validate


@pytest.mark.parametrize("value", TAKEN, ids=str)
def test_a_model_has_mergekits_meaning(parse, value):
    assert model_field({"model": value}, "model", "file") == str(parse(value))


@pytest.mark.parametrize("value", REFUSED_BY_BOTH, ids=str)
def test_what_mergekit_cannot_read_is_refused(parse, value):
    with pytest.raises(ValueError, match=r"file: model"):
        model_field({"model": value}, "model", "file")
    with pytest.raises(ValueError):
        parse(value)


@pytest.mark.parametrize(("message", "value"), REFUSED_HERE.items())
def test_what_is_not_supported_is_named(message, value):
    with pytest.raises(ValueError, match=f"file: model.*{message}"):
        model_field({"model": value}, "model", "file")


def test_a_mapping_and_a_text_are_one_expert(base, adapters, make_recipe):
    mapped = [
        {"source_model": {"model": {"path": str(base)}, "lora": {"path": str(adapter)}}, "positive_prompts": [str(adapter)]}
        for adapter in adapters[:2]
    ]
    plain = open_recipe(make_recipe([f"{base}+{adapter}" for adapter in adapters[:2]]), None, None)
    given = open_recipe(make_recipe([], base_model={"model": {"path": str(base)}}, experts=mapped), None, None)
    assert [source.fingerprint for source in given.sources] == [source.fingerprint for source in plain.sources]
    assert (given.base, given.config.expert_layout) == (base, "lora")


def test_revisions_and_a_base_with_an_adapter_are_refused(base, adapters, make_recipe, tmp_path):
    with pytest.raises(ValueError, match=r"base_model is .*\+.*, but the base has no adapter; make one model"):
        open_recipe(make_recipe(adapters[:2], base_model=f"{base}+{adapters[0]}"), None, None)
    with pytest.raises(ValueError, match=r"base@main is no folder, and names a revision; give the folder"):
        open_recipe(make_recipe([f"{base}@main", adapters[0]]), None, None)
    path = tmp_path / "merge.yml"
    path.write_text(yaml.safe_dump({"merge_method": "linear", "models": [{"model": f"{base}@main", "parameters": {"weight": 1}}]}))
    with pytest.raises(ValueError, match=r"base@main is no folder, and names a revision"):
        open_merge(path)
