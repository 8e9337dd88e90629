"""`--inspect`: task vectors as a table, as JSON and as a heat map."""

import json

import pytest
import torch
from matplotlib.axes import Axes
from peft import PeftModel
from transformers import MistralForCausalLM

from model.checkpoint import Checkpoint
from model.merging.task_vectors import draw_heat_map

from .conftest import entry


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
