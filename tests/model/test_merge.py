"""`python -m model.merge` on tiny models, against mergekit 0.1.5 where it is installed, and PEFT."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from matplotlib.axes import Axes
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig, MistralForCausalLM

from model.checkpoint import Checkpoint
from model.load import load_model
from model.merge import main
from model.merging import parallel, sparsify
from model.merging.methods import METHODS
from model.merging.task_vectors import draw_heat_map
from model.output import check_manifest

from .conftest import SHAPE

EXAMPLES = Path(__file__).parents[2] / "examples"
HALVES = [{"layer_range": [0, 1]}, {"layer_range": [1, 2]}]


@pytest.fixture(scope="session")
def models(base) -> dict[str, list[Path]]:
    """A base and three models near it, in each dtype."""
    generator = torch.Generator().manual_seed(0)
    folders: dict[str, list[Path]] = {"float32": [], "bfloat16": [], "float64": []}
    for index in range(4):
        tensors = {name: Checkpoint(base).tensor(name) for name in Checkpoint(base)}
        if index:
            tensors = {name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator) for name, tensor in tensors.items()}
        for dtype, made in folders.items():
            made.append(base.parent / f"{dtype}-{index}")
            shutil.copytree(base, made[-1])
            save_file({name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors.items()}, made[-1] / "model.safetensors")
    return folders


@pytest.fixture
def merge(tmp_path, monkeypatch):
    """Runs the command on a configuration; the output's folder, or the exit status if that is not 0."""

    def run(config: dict | Path, *flags: str, out: str = "out") -> Path:
        path = config
        if isinstance(config, dict):
            path = tmp_path / "merge.yml"
            path.write_text(yaml.safe_dump(config))
        monkeypatch.setattr("sys.argv", ["merge", str(path), str(tmp_path / out), *flags])
        return tmp_path / out if (status := main()) == 0 else status

    return run


@pytest.fixture
def same_masks(monkeypatch):
    """Random masks that are ours and mergekit's alike."""

    def fixed(probability, *_, **__):
        return torch.rand(probability.shape, generator=torch.Generator().manual_seed(3)) < probability

    monkeypatch.setattr(sparsify, "bernoulli", fixed)
    monkeypatch.setattr(torch, "bernoulli", lambda probability: fixed(probability).to(probability.dtype))


def entry(model: Path | str, **parameters) -> dict:
    return {"model": str(model), **({"parameters": parameters} if parameters else {})}


def run_mergekit(config: dict, folder: Path) -> Checkpoint:
    pytest.importorskip("mergekit")
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    run_merge(
        MergeConfiguration.model_validate(config), str(folder), options=MergeOptions(quiet=True, lora_merge_cache=str(folder / "lora"))
    )
    return Checkpoint(folder)


def check_equal(found: Path, expected: Checkpoint) -> None:
    ours = Checkpoint(found)
    assert set(ours) == set(expected)
    for name in expected:
        assert ours.tensor(name).dtype == expected.tensor(name).dtype, name
        assert torch.equal(ours.tensor(name), expected.tensor(name)), name


def make_config(method: str, folders: list[Path], **extra) -> dict:
    base, a, b, c = folders
    if method == "slerp":
        t = [{"filter": "self_attn", "value": [0, 0.5, 0.3]}, {"filter": "mlp", "value": [1, 0.2]}, {"value": 0.4}]
        return {"merge_method": method, "base_model": str(base), "models": [entry(a)], "parameters": {"t": t}, **extra}
    named = {} if method == "linear" else {"base_model": str(base)}
    models = [
        entry(a, weight=1.0, density=0.5),
        entry(b, weight=[0.1, 0.5, -0.3], density=0.7),
        entry(c, weight=[{"filter": "mlp", "value": [0.1, 0.35]}, {"value": 0.3}], density=[0.2, 0.8]),
    ]
    return {"merge_method": method, **named, "models": models, **extra}


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


@pytest.mark.parametrize("method", ["dare_ties", "della", "ties", "breadcrumbs_ties"])
def test_densities_of_nothing_and_all(models, merge, method):
    """Nothing is the base; all is the task vectors as they are."""
    base, a, *_ = models["float32"]
    for density in (0, 1):
        config = {"merge_method": method, "base_model": str(base), "models": [entry(a, weight=1, density=density)]}
        found, expected = Checkpoint(merge(config, out=f"{density}")), Checkpoint((base, a)[density])
        for name in expected:
            torch.testing.assert_close(found.tensor(name), expected.tensor(name), atol=1e-6, rtol=0)


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


@pytest.fixture(scope="session")
def tied(base) -> list[Path]:
    """Two models whose head is their embeddings, which alone are in the file, and one with a head of its own."""
    folders = []
    for index, is_tied in enumerate([True, True, False]):
        folders.append(base.parent / f"tied-{index}")
        torch.manual_seed(index)
        model = MistralForCausalLM(MistralConfig(**{**SHAPE, "tie_word_embeddings": is_tied}))
        model.save_pretrained(folders[-1])
        AutoTokenizer.from_pretrained(base).save_pretrained(folders[-1])
        assert ("lm_head.weight" in Checkpoint(folders[-1])) != is_tied
    return folders


@pytest.mark.parametrize("method", ["linear", "slerp", "ties", "task_arithmetic"])
@pytest.mark.parametrize("order", [(0, 2), (2, 0), (0, 1)], ids=["tied base", "untied base", "all tied"])
def test_tied_and_untied_heads_are_merged_as_mergekits(tied, merge, tmp_path, method, order):
    """mergekit's tensors; but its configuration may still say that they are tied, which transformers only doubts since version 5."""
    base, other = (tied[index] for index in order)
    config = make_config(method, [base, other, other, other])
    if method != "slerp":
        config["models"] = [entry(other, weight=0.7, density=0.5), *([entry(base, weight=0.4)] if method == "linear" else [])]
    out = merge(config)
    check_equal(out, run_mergekit(config, tmp_path / "theirs"))
    model, weights = load_model(out)[0], Checkpoint(out)
    has_head = 2 in order
    assert ("lm_head.weight" in weights) == has_head == (not model.config.tie_word_embeddings)
    assert torch.equal(model.lm_head.weight, weights.tensor("lm_head.weight" if has_head else "model.embed_tokens.weight"))
    assert torch.equal(model.model.embed_tokens.weight, weights.tensor("model.embed_tokens.weight"))


def test_the_last_slice_gives_the_head_even_if_it_is_tied(tied, merge):
    """mergekit leaves it out there, and the output without a head."""
    slices = [{"sources": [{**entry(folder), **half}]} for folder, half in zip((tied[2], tied[0]), HALVES, strict=True)]
    model = load_model(merge({"merge_method": "passthrough", "slices": slices}))[0]
    for found, folder in ((model.lm_head, tied[0]), (model.model.embed_tokens, tied[2])):
        assert torch.equal(found.weight, Checkpoint(folder).tensor("model.embed_tokens.weight"))


def test_inspect_sees_a_head_that_only_one_has(tied, merge):
    out = merge({"merge_method": "ties", "base_model": str(tied[0]), "models": [entry(tied[2], weight=1)]}, "--inspect")
    row = json.loads((out / "task_vectors.json").read_text())["layers"]["lm_head"]
    head, embeddings = Checkpoint(tied[2]).tensor("lm_head.weight"), Checkpoint(tied[0]).tensor("model.embed_tokens.weight")
    assert row["norms"]["tied-2"] == pytest.approx(float((head - embeddings).norm()), rel=1e-5)


@pytest.fixture(scope="session")
def with_more_tokens(base) -> list[Path]:
    """Two models whose tokenizers have added tokens, one of them in common."""
    folders = []
    for index, tokens in enumerate([["<|start|>", "<|end|>"], ["<|end|>", "<tool>"]]):
        folders.append(base.parent / f"more-{index}")
        torch.manual_seed(index)
        model = MistralForCausalLM.from_pretrained(base)
        tokenizer = AutoTokenizer.from_pretrained(base)
        tokenizer.add_tokens(tokens, special_tokens=True)
        model.resize_token_embeddings(len(tokenizer) + index, mean_resizing=False)
        model.save_pretrained(folders[-1])
        tokenizer.save_pretrained(folders[-1])
    return folders


@pytest.mark.parametrize("source", ["base", "union", "model"])
@pytest.mark.parametrize("method", ["ties", "linear"])
def test_vocabularies_are_aligned_as_mergekits(models, with_more_tokens, merge, tmp_path, source, method):
    source = str(with_more_tokens[1]) if source == "model" else source
    folders = [models["float32"][0], models["float32"][1], *with_more_tokens]
    config = {**make_config(method, folders), "tokenizer": {"source": source}}
    if source == "base":
        config |= {"base_model": str(folders[0]), "parameters": {"weight": 0.5}}
    out = merge(config)
    expected = run_mergekit(config, tmp_path / "theirs")
    ours, theirs = (AutoTokenizer.from_pretrained(folder).get_vocab() for folder in (out, tmp_path / "theirs"))
    assert ours.keys() == theirs.keys() and sorted(ours.values()) == list(range(len(ours)))
    found = Checkpoint(out)
    for name in expected:
        tensor = found.tensor(name)
        if name in ("lm_head.weight", "model.embed_tokens.weight"):  # mergekit's union numbers added tokens in another order at each run
            tensor = tensor[[ours[token] for token in sorted(theirs, key=theirs.__getitem__)]]
        assert torch.equal(tensor, expected.tensor(name)), name
    assert load_model(out)[0].get_input_embeddings().weight.shape[0] == len(ours)


@pytest.fixture(scope="session")
def with_rowless_tokens(base, models) -> Path:
    """A model whose tokenizer has two tokens more than it has rows: one that `with_more_tokens` have too, and a pad token."""
    folder = base.parent / "rowless"
    shutil.copytree(models["float32"][3], folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<|end|>"], special_tokens=True)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    return folder


def test_tokens_without_rows_are_absent_as_mergekits(models, with_rowless_tokens, merge, tmp_path, capsys):
    config = make_config("ties", [*models["float32"][:3], with_rowless_tokens], tokenizer_source="union")
    out = merge(config)
    check_equal(out, run_mergekit(config, tmp_path / "theirs"))
    assert "rowless has 64 rows of embeddings and none for '<|end|>', '[PAD]', taken as absent" in capsys.readouterr().err
    assert "[PAD]" not in AutoTokenizer.from_pretrained(out).get_vocab()


@pytest.mark.parametrize("source", ["base", "union", "model"])
def test_a_token_without_a_row_gets_another_models_or_zeros(with_rowless_tokens, with_more_tokens, merge, source, capsys):
    """mergekit ends in a KeyError there, or has more tokens than rows."""
    config = {"merge_method": "task_arithmetic", "base_model": str(with_rowless_tokens), "parameters": {"weight": 0.5}}
    config["models"] = [entry(folder) for folder in with_more_tokens]
    out = merge({**config, "tokenizer_source": str(with_rowless_tokens) if source == "model" else source})
    assert "no model has a row for '[PAD]' of the output's tokenizer: they get zeros" in capsys.readouterr().err
    tokens, weight = AutoTokenizer.from_pretrained(out).get_vocab(), Checkpoint(out).tensor("model.embed_tokens.weight")
    assert len(weight) == len(tokens) and not weight[tokens["[PAD]"]].any()
    theirs = [Checkpoint(folder).tensor("model.embed_tokens.weight") for folder in with_more_tokens]
    rows = [AutoTokenizer.from_pretrained(folder).get_vocab()["<|end|>"] for folder in with_more_tokens]
    expected = sum(weight[row] for weight, row in zip(theirs, rows, strict=True)) / 2
    torch.testing.assert_close(weight[tokens["<|end|>"]], expected)
    assert load_model(out)[0].get_input_embeddings().weight.shape[0] == len(tokens)


@pytest.mark.parametrize("source", ["model", "union"])
def test_generation_stops_where_the_tokenizer_says(models, with_more_tokens, merge, tmp_path, source):
    """With another model's tokenizer; a union is the reference's with more tokens, whose configuration may know of more stops."""
    other = tmp_path / "other"
    shutil.copytree(with_more_tokens[1], other)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.eos_token, tokenizer.pad_token = "<tool>", "<|end|>"
    tokenizer.save_pretrained(other)
    config = make_config("task_arithmetic", [*models["float32"][:3], other])
    model, found = load_model(merge({**config, "tokenizer_source": str(other) if source == "model" else source}))
    expected = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if source == "model":
        expected |= {"eos_token_id": found.eos_token_id, "pad_token_id": found.pad_token_id}
        assert (found.eos_token, found.pad_token) == ("<tool>", "<|end|>")
    for settings in (model.config, model.generation_config):
        assert {name: getattr(settings, name) for name in expected} == expected


def test_missing_tokens_are_gathered_in_one_read_of_each_matrix(base, models, merge, monkeypatch):
    """And not in one for each token."""
    reads = []
    for index, count in enumerate([1, 20]):
        folder = base.parent / f"added-{index}"
        tokenizer, model = AutoTokenizer.from_pretrained(base), MistralForCausalLM.from_pretrained(base)
        tokenizer.add_tokens([f"<{n}>" for n in range(count)])
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        read, names = Checkpoint.tensor, []
        monkeypatch.setattr(Checkpoint, "tensor", lambda self, name, read=read, names=names: (names.append(name), read(self, name))[1])
        merge(make_config("ties", [*models["float32"][:3], folder], tokenizer_source="union"), out=f"out-{index}")
        monkeypatch.undo()
        reads.append(names.count("lm_head.weight"))
    assert reads[0] == reads[1]


@pytest.mark.parametrize(("method", "form"), [("ties", "text"), ("linear", "text"), ("ties", "mapping")])
def test_a_model_and_its_adapter_are_mergekits(models, make_adapter, merge, tmp_path, method, form):
    base, other, *_ = models["bfloat16"]
    adapter = make_adapter(tmp_path / "adapter", target_modules=["q_proj", "down_proj"])
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": str(base)}))
    config = {"merge_method": method, "models": [entry(f"{base}+{adapter}", weight=0.6), entry(other, weight=0.3)], "dtype": "float32"}
    config |= {"base_model": str(base)} if method == "ties" else {}
    if form == "mapping":
        config["models"][0]["model"] = {"model": {"path": str(base)}, "lora": {"path": str(adapter)}}
        config |= {"base_model": {"model": str(base)}, "tokenizer_source": {"model": {"path": str(base)}}}
    check_equal(merge(config), run_mergekit(config, tmp_path / "theirs"))


@torch.no_grad()
def test_task_vectors_of_adapters_are_their_products(base, adapters, merge, ids):
    """Sums of adapters are PEFT's `cat` combination of them."""
    weights = [0.5, -0.75, 1.25]
    config = {"merge_method": "task_arithmetic", "base_model": str(base)}
    out = merge({**config, "models": [entry(adapter, weight=weight) for adapter, weight in zip(adapters, weights, strict=True)]})
    expected = PeftModel.from_pretrained(MistralForCausalLM.from_pretrained(base), str(adapters[0]), "0")
    for index in (1, 2):
        expected.load_adapter(str(adapters[index]), str(index))
    positive = [weight if weight > 0 else -weight for weight in weights]  # PEFT takes the root of each weight
    for name, parameter in expected.named_parameters():
        if "lora_B.1" in name:
            parameter.neg_()
    expected.add_weighted_adapter(["0", "1", "2"], positive, "sum", combination_type="cat")
    expected.set_adapter("sum")
    torch.testing.assert_close(load_model(out)[0](ids).logits, expected(ids).logits, atol=1e-4, rtol=0)


def test_dora_alone_is_merged_as_peft_merges_it(base, make_adapter, merge, ids, tmp_path):
    """Its task vector is what it makes of the base's matrices, not B A."""
    dora = make_adapter(tmp_path / "dora", use_dora=True)
    out = merge({"merge_method": "task_arithmetic", "base_model": str(base), "models": [entry(dora, weight=1)]})
    expected = PeftModel.from_pretrained(MistralForCausalLM.from_pretrained(base), str(dora)).eval()(ids).logits
    torch.testing.assert_close(load_model(out)[0](ids).logits, expected, atol=1e-4, rtol=0)


def test_an_adapter_alone_is_not_rounded_before_it_is_merged(models, make_adapter, merge, tmp_path):
    """On a bf16 base: the task vector is in fp32 and the result rounded once, where `model+lora` rounds the difference too."""
    base = models["bfloat16"][0]
    adapter = make_adapter(tmp_path / "adapter", lora_alpha=0.1)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": str(base)}))
    name = "model.layers.0.mlp.down_proj"
    a, b = (Checkpoint(adapter / "adapter_model.safetensors").tensor(f"base_model.model.{name}.lora_{factor}.weight") for factor in "AB")
    weight = Checkpoint(base).tensor(f"{name}.weight")
    expected = weight.double() + 30 * (b.double() @ a.double()) * 0.1 / 4
    errors = []
    for index, model in enumerate([adapter, f"{base}+{adapter}"]):
        config = {"merge_method": "task_arithmetic", "base_model": str(base), "models": [entry(model, weight=30)]}
        found = Checkpoint(merge(config, out=str(index))).tensor(f"{name}.weight")
        assert found.dtype == torch.bfloat16
        errors.append(float((found.double() - expected).norm()))
    assert errors[0] == pytest.approx(float((expected.bfloat16().double() - expected).norm()), rel=1e-3) and errors[0] < errors[1] / 5


@pytest.mark.parametrize("method", ["task_arithmetic", "linear", "slerp"])
def test_beside_an_adapter_every_tensor_keeps_the_bases_dtype(models, make_adapter, merge, tmp_path, method):
    """A base in bf16 with norms in fp32, as some are stored."""
    base = tmp_path / "base"
    shutil.copytree(models["bfloat16"][0], base)
    tensors = {name: Checkpoint(base).tensor(name) for name in Checkpoint(base)}
    save_file({name: tensor.float() if "norm" in name else tensor for name, tensor in tensors.items()}, base / "model.safetensors")
    adapter = make_adapter(tmp_path / "adapter")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": str(base)}))
    config = {"merge_method": method, "models": [entry(adapter)], "base_model": str(base), "parameters": {"weight": 0.5, "t": 0.5}}
    found = Checkpoint(merge(config))
    assert {name: found.tensor(name).dtype for name in found} == {name: Checkpoint(base).tensor(name).dtype for name in tensors}


@torch.no_grad()
def test_float64_is_computed_stored_and_loaded(models, make_adapter, merge, tmp_path, ids):
    """Of checkpoints and of an adapter that stands alone; and such a model can be merged again."""
    base, other, *_ = models["float32"]
    adapter = make_adapter(tmp_path / "adapter")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": str(base)}))
    config = {"merge_method": "task_arithmetic", "base_model": str(base), "dtype": "torch.float64"}
    out = merge({**config, "models": [entry(other, weight=0.3), entry(adapter, weight=0.7)]})
    name = "model.layers.0.mlp.down_proj"
    a, b = (Checkpoint(adapter / "adapter_model.safetensors").tensor(f"base_model.model.{name}.lora_{factor}.weight") for factor in "AB")
    start, end = (Checkpoint(folder).tensor(f"{name}.weight").double() for folder in (base, other))
    expected = start + 0.3 * (end - start) + 0.7 * (b.double() @ a.double()) * settings["lora_alpha"] / settings["r"]
    torch.testing.assert_close(Checkpoint(out).tensor(f"{name}.weight"), expected, atol=1e-15, rtol=1e-13)
    model = load_model(out)[0]
    assert model.dtype == torch.float64 and model(ids).logits.isfinite().all()
    again = merge({"merge_method": "linear", "models": [entry(out, weight=1)]}, out="again")
    check_equal(again, Checkpoint(out))


def test_the_seed_decides_the_mask(models, merge):
    config = make_config("dare_linear", models["float32"])
    first, again, other = (Checkpoint(merge(config, "--seed", seed, out=name)) for name, seed in (("a", "1"), ("b", "1"), ("c", "2")))
    assert all(torch.equal(first.tensor(name), again.tensor(name)) for name in first)
    assert not any(torch.equal(first.tensor(name), other.tensor(name)) for name in first if "proj" in name)


def test_inspect_measures_task_vectors_and_writes_no_model(base, adapters, merge, capsys):
    out = merge(
        {"merge_method": "ties", "base_model": str(base), "models": [entry(adapter, weight=1) for adapter in adapters]}, "--inspect"
    )
    assert {path.name for path in out.iterdir()} == {"task_vectors.json", "task_vectors.png", "run.json", "manifest.json"}
    rows = json.loads((out / "task_vectors.json").read_text())["layers"]
    assert list(rows) == ["embed_tokens", "0", "1", "lm_head", "norm", "all"]
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 1 + len(rows) and "expert-2" in shown[0] and "cos 1·3" in shown[0]
    weights = [PeftModel.from_pretrained(MistralForCausalLM.from_pretrained(base), str(path)).merge_and_unload() for path in adapters]
    names = [name for name in Checkpoint(base) if "layers.1." in name]
    tensors = [[(dict(model.named_parameters())[name] - Checkpoint(base).tensor(name)).double() for name in names] for model in weights]
    flat = torch.stack([torch.cat([tensor.flatten() for tensor in tensors_]) for tensors_ in tensors])
    torch.testing.assert_close(torch.tensor(list(rows["1"]["norms"].values())), flat.norm(dim=1).float(), rtol=1e-4, atol=0)
    cosines = torch.stack([torch.cosine_similarity(flat[i], flat[j], dim=0) for i, j in ((0, 1), (0, 2), (1, 2))]).float()
    torch.testing.assert_close(torch.tensor(list(rows["1"]["cosines"].values())), cosines, atol=1e-4, rtol=0)
    signs = []
    for experts in zip(*tensors, strict=True):
        limits = [delta.abs().flatten().kthvalue(delta.numel() - int(0.2 * delta.numel()) + 1).values for delta in experts]
        kept = [delta.sign() * (delta.abs() >= limit) for delta, limit in zip(experts, limits, strict=True) if delta.any()]
        signs += [torch.stack(kept).flatten(1)] if kept else []
    signs = torch.cat(signs, dim=1)
    conflicts = int(((signs > 0).any(0) & (signs < 0).any(0)).sum()) / int((signs.abs().sum(0) > 1).sum())
    assert rows["1"]["sign_conflicts"] == pytest.approx(conflicts, abs=1e-3)
    assert rows["norm"]["sign_conflicts"] is None


def test_inspect_counts_conflicts_at_the_files_densities(models, merge):
    """By tensor and by model; a flag goes first, and without either it is a fifth."""
    base, a, b, _ = models["float32"]
    config = {"merge_method": "ties", "base_model": str(base), "models": [entry(a, weight=1), entry(b, weight=1)]}
    density = [{"filter": "mlp", "value": 0.6}, {"value": 0.3}]
    conflicts = []
    for number, (given, flags) in enumerate([(0.6, ()), (0.3, ()), (density, ()), (None, ()), (density, ("--density", "0.2"))]):
        out = merge({**config, "parameters": {"density": given} if given else {}}, "--inspect", *flags, out=str(number))
        found = json.loads((out / "task_vectors.json").read_text())
        conflicts.append({layer: row["sign_conflicts"] for layer, row in found["layers"].items()})
        assert found["density"] == (0.2 if flags or given is None else None)
    at_60, at_30, mixed, plain, flag = conflicts
    assert at_60["0"] != at_30["0"] and mixed["0"] not in (at_60["0"], at_30["0"]) and mixed["lm_head"] == at_30["lm_head"]
    assert plain == flag and plain["lm_head"] != at_30["lm_head"]


def test_inspect_names_the_base_whose_differences_it_shows(base, adapters, merge):
    """An adapter's model, not what that stands on: the difference of two adapters' products."""
    config = {"merge_method": "ties", "base_model": str(adapters[0]), "models": [entry(adapters[1], weight=1)]}
    found = json.loads((merge(config, "--inspect") / "task_vectors.json").read_text())
    assert found["base"] == str(adapters[0])
    plain = MistralForCausalLM.from_pretrained(base)
    one, other = (
        dict(PeftModel.from_pretrained(MistralForCausalLM.from_pretrained(base), str(path)).merge_and_unload().named_parameters())
        for path in adapters[:2]
    )
    square = sum(float((other[name] - one[name]).double().square().sum()) for name, _ in plain.named_parameters())
    assert found["layers"]["all"]["norms"]["expert-1"] == pytest.approx(square**0.5, rel=1e-4)


@pytest.mark.parametrize(("factor", "expected"), [(1, 0.4), (0.01, 0.05)])
def test_the_heat_maps_cosines_fill_their_scale(tmp_path, monkeypatch, factor, expected):
    """Those of real experts are below 0.1; but what is next to nothing should not look like much."""
    cosines = {"a, b": 0.1 * factor, "a, c": -0.4 * factor, "b, c": None}
    row = {"base_norm": 1.0, "norms": {"a": 1.0, "b": 1.0, "c": 1.0}, "cosines": cosines, "sign_conflicts": 0.5}
    limits, show = {}, Axes.imshow
    monkeypatch.setattr(
        Axes, "imshow", lambda self, *args, **kw: (limits.update({kw["cmap"]: (kw["vmin"], kw.get("vmax"))}), show(self, *args, **kw))[1]
    )
    draw_heat_map({"0": row, "all": row}, tmp_path / "map.png")
    assert limits["RdBu_r"] == (-expected, expected)


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


def test_every_method_of_mergekits_is_taken_or_documented_as_not():
    pytest.importorskip("mergekit")
    from mergekit.merge_methods import registered_methods

    not_taken = (Path(__file__).parents[2] / "docs" / "merging.md").read_text().partition("not taken: the methods")[2].partition(";")[0]
    assert {method.spec.name for method in registered_methods()} == METHODS.keys() | set(re.findall(r"`(\w+)`", not_taken))


def test_the_last_line_names_what_was_merged_and_the_dtype(models, merge, capsys):
    """The base of task vectors is not one of the merged; of slerp it is."""
    base, a, b, c = models["float32"]
    out = merge(make_config("ties", [base, a, b, c]))
    assert capsys.readouterr().out == f"{out}: ties of {a}, {b}, {c} onto {base}, 0.00 GB of float32\n"
    out = merge(make_config("slerp", [base, a, b, c]), out="slerp")
    assert capsys.readouterr().out == f"{out}: slerp of {base}, {a}, 0.00 GB of float32\n"


def test_chat_templates(models, merge):
    config = make_config("linear", models["float32"])
    assert AutoTokenizer.from_pretrained(merge({**config, "chat_template": "{{ messages }}"}, out="a")).chat_template == "{{ messages }}"
    assert AutoTokenizer.from_pretrained(merge({**config, "chat_template": "auto"}, out="b")).chat_template is None


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
        ({**linear, "models": [entry(a)], "tokenizer_source": "base"}, "tokenizer_source is 'base', but there is no base_model"),
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
