"""The command on tiny models: its runs are those of eval.codebleu, its figures follow from their rows, and it goes on where it stopped."""

import copy
import json
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import BloomConfig, BloomForCausalLM

import eval.study as command
from eval import codebleu
from eval.comparison import compare_systems, problem_differences
from eval.report import main as report
from eval.report import parse as parse_report
from eval.runs import read_run
from eval.study_file import read_study
from eval.study_tables import comparison_grid
from model import cost
from model.cli import run_command
from model.prompt import set_format

LENGTHS = (6, 20)


def run(*arguments: Any) -> int:
    return run_command(command.main, command.parse(), [str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def study_data(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test rows, and training rows in which the programs of the known problems stand under another task."""
    folder = tmp_path_factory.mktemp("study-data")
    for path in data_folder.iterdir():
        shutil.copy(path, folder)
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        known = [{**row, "text": f"known {row['text']}"} for row in rows if row["kind"] == "wording"]
        (folder / path.name.replace("test", "train")).write_text("".join(json.dumps(row) + "\n" for row in known))
    return folder


@pytest.fixture(scope="session")
def bloom_folder(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of another architecture, with a chat template of its own."""
    folder = tmp_path_factory.mktemp("bloom")
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    BloomForCausalLM(BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=2, n_head=2, **ids)).save_pretrained(folder)
    own = copy.deepcopy(tokenizer)
    set_format(own, "instruct")
    own.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_study(study_data: Path, base_folder: Path, mixture_folder: Path, bloom_folder: Path) -> Any:
    """Writes a study of base, experts (here: another model by language), mixture, oracle, and a model from outside."""

    def make(path: Path, **changes: Any) -> Path:
        systems = [
            {"name": "base", "model": str(base_folder)},
            {"name": "experts", "model": {"python": str(mixture_folder), "cpp": str(base_folder)}},
            {"name": "mixture", "model": str(mixture_folder)},
            {"name": "oracle", "model": str(mixture_folder), "router": "oracle"},
            {"name": "outside", "model": str(bloom_folder)},
        ]
        settings = {"data": str(study_data), "langs": ["python", "cpp"], "limit": 4, "lengths": list(LENGTHS), "experts": "experts"}
        path.write_text(yaml.safe_dump({**settings, "systems": systems, **changes}))
        return path

    return make


@pytest.fixture(scope="module")
def made(make_study: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    assert run(make_study(folder / "study.yml"), "--out", folder / "out") == 0
    return folder / "out"


def test_a_run_is_what_eval_codebleu_makes(made: Path, study_data: Path, mixture_folder: Path, tmp_path: Path) -> None:
    flags = ["--model", mixture_folder, "--router", "oracle", "--lang", "cpp", "--data", study_data, "--limit", 4, "--max-new-tokens", 6]
    arguments = [*map(str, flags), "--name", "oracle", "--out", str(tmp_path / "run")]
    assert run_command(codebleu.main, codebleu.parse(), arguments) == 0
    alone, ours = read_run(tmp_path / "run"), read_run(made / "6" / "oracle")
    assert ours.samples["cpp"] == alone.samples["cpp"]
    assert ours.facts["fingerprint"] == alone.facts["fingerprint"]
    assert ours.facts["router"] == "oracle"
    assert "generation_seconds_per_point" in read_run(made / "20" / "oracle").facts["figures"]["cpp"]["family"]
    assert "generation_seconds_per_point" not in ours.facts["figures"]["cpp"]["family"]  # it was cut, not made, at this length


def test_figures_follow_from_the_rows(made: Path) -> None:
    result = json.loads((made / "study.json").read_text())
    family = result["lengths"]["20"]["family"]
    rows = {name: read_run(made / "20" / name).samples for name in ("base", "mixture", "experts-cpp")}
    scores = {name: {lang: [row["codebleu"] for row in kinds["family"]] for lang, kinds in langs.items()} for name, langs in rows.items()}
    means = {lang: np.mean(values) for lang, values in scores["mixture"].items()}
    assert family["systems"]["mixture"]["cpp"]["codebleu"]["value"] == pytest.approx(means["cpp"])
    assert family["systems"]["mixture"]["all"]["codebleu"]["value"] == pytest.approx((means["cpp"] + means["python"]) / 2)
    nats, tokens = (sum(row[key] for row in rows["base"]["cpp"]["family"]) for key in ("reference_nats", "reference_tokens"))
    assert family["systems"]["base"]["cpp"]["loss"]["value"] == pytest.approx(nats / tokens)
    claim = find(family, system="mixture", against="base", metric="codebleu", lang="all")
    expected = np.mean([means[lang] - np.mean(scores["base"][lang]) for lang in means])
    assert claim["difference"]["value"] == pytest.approx(expected)
    assert claim["p"] <= claim["p_holm"] <= 1
    assert find(family, system="mixture", against="experts", metric="loss", lang="cpp")["ratio"]["value"] == pytest.approx(
        family["systems"]["mixture"]["cpp"]["loss"]["value"] / family["systems"]["experts"]["cpp"]["loss"]["value"]
    )


def find(figures: dict[str, Any], **wanted: str) -> dict[str, Any]:
    return next(claim for claim in figures["claims"] if all(claim[key] == value for key, value in wanted.items()))


def test_programs_that_stand_in_training_rows_are_left_out(made: Path) -> None:
    result = json.loads((made / "study.json").read_text())
    assert [result["contamination"]["cpp"][kind]["seen"] for kind in ("wording", "family")] == [4, 4]  # but for its name it is one program
    assert result["contamination"]["cpp"]["wording"]["median"] == 1.0
    assert 0.7 < result["contamination"]["cpp"]["family"]["greatest"] < 1.0
    assert result["lengths"]["6"]["family"]["unseen"] == {"points": {}, "systems": {}}


def test_tables_are_written_and_the_report_reads_the_runs(made: Path, tmp_path: Path) -> None:
    text = (made / "study.md").read_text()
    assert all(f"## Unseen problem families, at most {length} new tokens" in text for length in LENGTHS)
    assert "| System | Python (n = 4) | C++ (n = 4) | all | / base | p, base | / experts | p, experts | loss |" in text
    assert "Asked in a prompt template of their own, not in that of base: outside.\n" in text
    runs = [str(made / "20" / name) for name in ("base", "mixture")]
    assert run_command(report, parse_report(), [*runs, "--out", str(tmp_path / "report")]) == 0


def test_it_goes_on_where_it_stopped(make_study: Any, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, out = make_study(tmp_path / "study.yml", train=None, langs=["cpp"]), tmp_path / "out"
    loaded, load = [], command.load
    monkeypatch.setattr(command, "load", lambda args, langs: loaded.append(args.name) or load(args, langs))
    assert run(study, "--out", out) == 0
    assert loaded == ["base", "experts-cpp", "mixture", "oracle", "outside"]
    before = (out / "20" / "base" / "run.json").read_bytes()
    shutil.rmtree(out / "6" / "mixture")
    assert run(study, "--out", out) == 0
    assert loaded[5:] == ["mixture"]
    assert (out / "20" / "base" / "run.json").read_bytes() == before
    assert json.loads((out / "study.json").read_text())["contamination"] is None


def test_a_run_of_other_weights_or_settings_is_refused(
    make_study: Any, base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(base_folder, tmp_path / "model")
    systems = [{"name": "base", "model": str(model)}]
    study = make_study(tmp_path / "study.yml", systems=systems, experts=None, langs=["cpp"], train=None, lengths=[4])
    assert run(study, "--out", tmp_path / "out") == 0
    assert run(study, "--out", tmp_path / "out", "--seed", "1") == 2
    assert "was made with seed = 0, but the study says 1" in capsys.readouterr().err
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    assert run(study, "--out", tmp_path / "out") == 2
    assert "was made with fingerprint" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    assert run(study, "--out", tmp_path / "other") == 2
    assert "is not a study's" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"lenghts": [1]}, "unknown key 'lenghts'; did you mean 'lengths'"),
        ({"systems": [{"name": "base", "model": "m", "stop": ["END", ""]}]}, "system 1 (base): a stop text is empty"),
        ({"systems": []}, "systems must be a list of at least one system"),
        ({"systems": [{"name": "a"}]}, "(a) has no model"),
        ({"systems": [{"name": "a/b", "model": "m"}]}, "it names a folder"),
        ({"systems": [{"name": "base", "model": "m"}] * 2}, "two systems, or their runs, are called 'base'"),
        ({"systems": [{"name": "base", "model": "m", "router": "best"}]}, "router is 'best'; allowed: noisy_topk"),
        ({"systems": [{"name": "base", "model": {"ruby": "m"}}]}, "unknown key 'ruby'"),
        ({"systems": [{"name": "base", "model": {"java": "m"}}], "experts": None}, "has no model for any of python, cpp"),
        ({"baseline": "bose"}, "baseline is 'bose', which is no system"),
        ({"langs": ["ruby"]}, "unknown language 'ruby'"),
        ({"lengths": [0]}, "lengths must be a whole number of at least 1, not 0"),
        ({"limit": True}, "limit must be a whole number of at least 1, not True"),
        ({"data": 3}, "data must be a text, not 3"),
    ],
)
def test_mistakes_in_the_file(make_study: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: Any, sentence: str) -> None:
    assert run(make_study(tmp_path / "study.yml", **changes), "--out", tmp_path / "out") == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_model_or_router_is_said_before_anything_is_scored(
    make_study: Any, base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = {"name": "base", "model": str(base_folder)}
    for other, sentence in (
        ({"model": str(tmp_path / "absent")}, "absent"),
        ({"model": str(base_folder), "router": "switch"}, "is no mixture"),
    ):
        study = make_study(tmp_path / "study.yml", systems=[base, {"name": "other", **other}], experts=None)
        assert run(study, "--out", tmp_path / "out") == 2
        assert sentence in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_missing_training_rows_are_said_before_anything_is_scored(
    make_study: Any, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(tmp_path / "study.yml", train=str(data_folder))  # it has test rows alone
    assert run(study, "--out", tmp_path / "out") == 2
    assert "train" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("resettable", [True, False])
def test_the_peak_of_memory_is_the_systems_own(
    resettable: bool, make_study: Any, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not that of what the process held before; where that cannot be told apart there is none."""
    if not resettable:
        monkeypatch.setattr(cost, "CLEAR", tmp_path / "absent" / "clear_refs")
    elif not cost.reset_peak():
        pytest.skip("the system does not let it")
    held = torch.ones(600 << 20, dtype=torch.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    del held
    systems = [{"name": "base", "model": str(base_folder)}]
    study = make_study(tmp_path / "study.yml", systems=systems, experts=None, langs=["cpp"], train=None, lengths=[2])
    assert run(study, "--out", tmp_path / "out") == 0
    found = read_run(tmp_path / "out" / "2" / "base").facts["cost"]
    assert found["peak_bytes"] < before - (200 << 20) if resettable else "peak_bytes" not in found


def test_losses_of_other_tokens_are_not_compared(make_study: Any, tmp_path: Path) -> None:
    study = read_study(make_study(tmp_path / "study.yml"))

    def row(index: int, score: float, tokens: int) -> dict[str, Any]:
        measures = dict.fromkeys(("codebleu_library", "exact_match", "edit_similarity", "chrf", "parses"), 0.5)
        own = {"group": f"g{index}", "codebleu": score, "reference_nats": 2.0 * tokens, "reference_tokens": tokens, "seen": index / 4}
        return {**measures, **own}

    systems = {name: {"cpp": [row(i, 0.1 * i, tokens) for i in range(4)]} for name, tokens in (("base", 7), ("experts", 7), ("mixture", 9))}
    figures = compare_systems(study, {"test": systems}, 0)["test"]
    assert {(claim["system"], claim["metric"]) for claim in figures["claims"]} == {
        ("experts", "codebleu"),
        ("experts", "loss"),
        ("mixture", "codebleu"),
    }
    assert figures["unseen"]["points"] == {"cpp": {"n": 3, "groups": 3}}  # shares 0, 0.25 and 0.5
    assert figures["unseen"]["systems"]["base"]["all"]["codebleu"]["value"] == pytest.approx(0.1)
    assert "all" not in figures["systems"]["base"]  # the study has two languages


def test_differences_by_problem_sum_to_the_difference_of_means() -> None:
    rng = np.random.default_rng(0)

    def system() -> dict[str, Any]:
        sizes = {"python": 5, "cpp": 3}
        return {
            lang: [
                {"group": f"g{i // 2}", "codebleu": rng.random(), "reference_nats": rng.random(), "reference_tokens": i + 1}
                for i in range(n)
            ]
            for lang, n in sizes.items()
        }

    ours, theirs = system(), system()
    means = [np.mean([np.mean([row["codebleu"] for row in rows]) for rows in side.values()]) for side in (ours, theirs)]
    assert sum(problem_differences(ours, theirs, "codebleu", list(ours)).values()) == pytest.approx(means[0] - means[1])
    losses = [
        np.mean([sum(row["reference_nats"] for row in rows) / sum(row["reference_tokens"] for row in rows) for rows in side.values()])
        for side in (ours, theirs)
    ]
    assert sum(problem_differences(ours, theirs, "loss", list(ours)).values()) == pytest.approx(losses[0] - losses[1])
    assert list(problem_differences(ours, theirs, "codebleu", ["cpp"])) == ["g0", "g1"]


def test_the_example_is_read() -> None:
    study = read_study(Path(__file__).parents[2] / "examples" / "study.yml")
    assert (study.baseline, study.experts, study.lengths) == ("base", "experts", [256, 650])
    assert [source.run for system in study.systems[:2] for source in system.sources(study.langs)] == [
        "base",
        *(f"experts-{lang}" for lang in ("python", "java", "javascript", "cpp")),
    ]


def test_programs_are_compiled_where_the_study_says_so(
    make_study: Any, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A program that no compiler could look at leaves the rates of all systems."""

    def compiled(programs: list[str], lang: str, **_: Any) -> list[bool | None]:
        return [None, *(place % 2 == 0 for place in range(1, len(programs)))]

    monkeypatch.setattr(codebleu, "compile_all", compiled)
    systems = [{"name": "base", "model": str(base_folder)}]
    settings = {"systems": systems, "experts": None, "langs": ["python"], "lengths": [6]}
    without = make_study(tmp_path / "without.yml", **settings)
    assert run(without, "--out", tmp_path / "out") == 0
    study = make_study(tmp_path / "study.yml", compile=True, **settings)
    assert run(study, "--out", tmp_path / "out", "--unsafe-no-sandbox") == 2
    assert "was made with sandbox = None" in capsys.readouterr().err
    assert run(study, "--out", tmp_path / "compiled", "--unsafe-no-sandbox") == 0
    own = json.loads((tmp_path / "compiled" / "study.json").read_text())["lengths"]["6"]["family"]["systems"]["base"]["python"]
    assert own["compiles"]["value"] == own["reference_compiles"]["value"] == pytest.approx(1 / 3)
    assert "Compiles" in (tmp_path / "compiled" / "study.md").read_text()
    assert "Compiles" not in (tmp_path / "out" / "study.md").read_text()
    make_study(tmp_path / "wrong.yml", compile="yes", **settings)
    assert run(tmp_path / "wrong.yml", "--out", tmp_path / "wrong") == 2
    assert "compile must be true or false, not 'yes'" in capsys.readouterr().err


def test_a_loss_that_is_not_there_is_a_dash() -> None:
    def score(**more: object) -> dict[str, object]:
        return {"all": {"codebleu": {"value": 0.5, "low": None, "high": None}, **more}}

    losses = [{}, {"loss": {"value": None, "low": None, "high": None}}, {"loss": {"value": 1.25, "low": None, "high": None}}]
    figures = {"points": {}, "claims": [], "systems": {str(number): score(**loss) for number, loss in enumerate(losses)}}
    study = SimpleNamespace(langs=[], baseline="0", experts=None)
    head, rows = comparison_grid(study, figures)  # type: ignore[arg-type]
    assert head[-1] == "loss" and [row[-1][0] for row in rows] == ["–", "–", "1.250"]
