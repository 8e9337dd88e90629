"""The whole report from hand-written runs: numbers by hand, one page without anything to fetch, and nothing half-written."""

import json
import re
from collections.abc import Callable
from contextlib import redirect_stdout
from html import unescape
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from eval.figures import training_summary
from eval.judge import OUTCOMES
from eval.plots import THEMES, training_figure
from eval.report import main, parse
from eval.report_tables import TOKEN_BY_TOKEN
from eval.runs import ARRAYS, PASS_AT_K, PROGRAMS, ROUTING
from eval.tables import FEW_NOTE
from eval.token_classes import CLASSES
from model.cli import run_command
from model.output import check_manifest, output_folder, write_json, write_run

WriteRun = Callable[..., Path]

BASE = {"cpp": {"wording": [0.2, 0.4, 0.1, 0.3], "family": [0.1, 0.3, 0.2, 0.2]}, "java": {"wording": [0.4, 0.4, 0.6, 0.6]}}
EXPERTS = {"cpp": {"wording": [0.6, 0.8, 0.5, 0.5], "family": [0.2, 0.4, 0.3, 0.3]}, "java": {"wording": [0.9, 0.7, 0.8, 0.8]}}
MIXTURE = {"cpp": {"wording": [0.6, 0.6, 0.5, 0.5], "family": [0.1, 0.3, 0.2, 0.2]}, "java": {"wording": [0.8, 0.8, 0.7, 0.9]}}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, write_codebleu_run: WriteRun) -> list[str]:
    folder = tmp_path_factory.mktemp("runs")
    runs = [write_codebleu_run(folder, "base", "base", BASE, dtype="float32", quantization=None)]
    runs.append(write_codebleu_run(folder, "mixture", "mixture", MIXTURE, dtype="float32", quantization="nf4"))
    runs += [write_codebleu_run(folder, f"expert-{lang}", "expert", {lang: EXPERTS[lang]}, dtype="bfloat16") for lang in EXPERTS]
    layers = {"cpp": [[0.7, 0.3], [0.9, 0.1]], "java": [[0.2, 0.8], [0.4, 0.6]]}
    rows = {lang: _routing(layers[lang], own) for own, lang in enumerate(EXPERTS)}
    with output_folder(folder / "routing") as routing:
        arrays = {"experts": list(EXPERTS), "classes": CLASSES, "languages": rows, "nmi_language": [0.25, 0.5]}
        write_json(routing / ARRAYS, arrays)
        program = {"lang": "cpp", "id": "p", "kind": "family", "text": "do </script> it", "pieces": ["int", " a<b;"]}
        programs = [{**program, "choices": [[[0, 60, 1, 40], [1, 90, 0, 10]], [[0, 100, 1, 0], [0, 70, 1, 30]]]}]
        shown = {"model": "mixture", "experts": list(EXPERTS), "max_new_tokens": 9, "programs": programs}
        write_json(routing / PROGRAMS, shown)
        write_run(routing, seed=0, figures={"cpp": {"own_top1": 0.8}}, program=ROUTING)
    with output_folder(folder / "pass") as passed:
        rates = {"1": {"value": 0.125, "low": 0.0625, "high": 0.25, "tasks": 16}}
        outcomes = dict.fromkeys(OUTCOMES, 0) | {"passed": 8, "failed": 55, "tool missing": 1}
        figures = {"tasks": 16, "samples": 64, "outcomes": outcomes, "pass_at_k": rates}
        how = {"n": 4, "temperature": 0.8, "top_p": 0.95, "max_new_tokens": 77, "template": True, "timeout": 10.0, "memory": 512}
        about = {"name": "mixture", "model": "m", "tasks": "sets/humaneval_x.cpp.jsonl.gz", "lang": "cpp", "data": None}
        how["cost"] = {"dtype": "bfloat16", "quantization": "nf4"}
        write_run(passed, seed=0, figures=figures, program=PASS_AT_K, sandbox={"isolated": True}, **about, **how)
    log = folder / "expert-cpp.training"
    log.mkdir()
    (log / "log.jsonl").write_text('{"step": 10, "loss": 2.5, "seconds": 4}\n{"step": 20, "loss": 1.5}\n{"step": 20, "eval_loss": 1.75}\n')
    took = {"seconds": 4.0, "tokens_per_second": 150.0, "batch_size": 8, "device": "cpu", "peak_bytes": 3 * 2**29, "parameters": 2_500_000}
    took |= {"dtype": "float32", "quantization": "nf4"}
    write_json(log / "run.json", {"figures": {**took, "active_parameters": 1_500_000, "trainable_parameters": 120_000}})
    return [*map(str, runs), str(folder / "routing"), str(folder / "pass"), "--training", str(log)]


@pytest.fixture(scope="module")
def made(inputs: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The report's folder, and what the command printed."""
    out = tmp_path_factory.mktemp("report") / "out"
    with redirect_stdout(StringIO()) as printed:
        assert run_command(main, parse(), [*inputs, "--title", "A < B & C", "--out", str(out)]) == 0
    return out, printed.getvalue()


def _routing(top1: list[list[float]], own: int) -> dict[str, Any]:
    by_class = [[[0.0, 0.0] for _ in CLASSES] for _ in top1]
    for layer, shares in zip(by_class, top1, strict=True):
        layer[CLASSES.index("keyword")] = shares
    row = {"n": 4, "tokens": 100, "top1": top1, "topk": [[1.0, 1.0]] * 2, "own_top1": [layer[own] for layer in top1]}
    return {**row, "own_topk": [1.0, 1.0], "entropy_bits": [0.5, 1.0], "by_class": by_class, "nmi_class": [0.1, 0.2]}


def test_the_numbers_are_those_worked_out_by_hand(made: tuple[Path, str]) -> None:
    out, printed = made
    report = json.loads((out / "report.json").read_text())
    one, two = report["tables"]["table1"], report["tables"]["table2"]

    row = one["wording"]["cpp"]
    assert (row["n"], row["groups"]) == (4, 2)
    assert [row[key]["value"] for key in ("base", "expert", "difference", "ratio")] == pytest.approx([0.25, 0.6, 0.35, 2.4])
    # two problems with means 0.3 and 0.2 (base), 0.7 and 0.5 (expert): a resample has one, the other, or both
    assert (row["base"]["low"], row["base"]["high"]) == pytest.approx((0.2, 0.3))
    assert (row["difference"]["low"], row["difference"]["high"]) == pytest.approx((0.3, 0.4))
    assert (row["ratio"]["low"], row["ratio"]["high"]) == pytest.approx((0.7 / 0.3, 2.5))

    row = two["wording"]["all"]  # languages count alike: base (0.25 + 0.5) / 2, experts (0.6 + 0.8) / 2, mixture (0.55 + 0.8) / 2
    assert (row["n"], row["groups"]) == (8, 2)
    assert [row[key]["value"] for key in ("base", "mixture", "ratio", "kept")] == pytest.approx([0.375, 0.675, 1.8, 0.675 / 0.7])
    assert set(one["family"]) == {"cpp", "all"}
    assert two["family"]["cpp"]["kept"]["value"] == pytest.approx(0.2 / 0.3)
    assert two["family"]["cpp"]["difference"]["value"] == pytest.approx(0)

    names = {headline["name"]: headline["figure"] for headline in report["headlines"]}
    assert names["wording/mixture/kept"] == "96.4 %"
    assert names["wording/expert/ratio"] == "1.87×"
    assert "by the language's expert" in report["headlines"][0]["text"]
    assert report["texts"]["table1"].endswith("Each expert sees its own language only.")
    trained = {"steps": 20, "first_loss": 2.5, "last_loss": 1.5, "best_eval_loss": 1.75, "loss_unit": "nats per token", "seconds": 4}
    assert report["training"] == {"expert-cpp.training": {**trained, "sources": ["expert-cpp.training"]}}
    assert report["generations"]["cpp"]["id"] == "cpp/wording/3"  # expert scores 0.6 0.8 0.5 0.5: the lower median is the second 0.5
    assert "Table 1" in printed
    assert "Table 2" in printed
    assert str(out / "report.html") in printed
    assert "60.0 [50.0, 70.0]" in printed


class Page(HTMLParser):
    """Collects what a page shows and fetches, and checks that its tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.links: dict[str, list[str]] = {}  # text: where it leads
        self.ids: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "img", "source"):
            self.open.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "srcset")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.target = dict(attrs).get("href") if tag == "a" else None

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] == "a":
            self.links.setdefault(data, []).append(self.target or "")


def test_the_page_is_whole_and_fetches_nothing(made: tuple[Path, str]) -> None:
    out, _ = made
    text = (out / "report.html").read_text()
    page = Page(text)
    assert "://" not in text
    assert len(page.sources) == 8  # four figures, light and dark
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in page.sources)
    for shown in (
        "A < B & C",
        "<mixture> & 3",
        "Unseen problem families",
        "60.0",
        "96.4 %",
        "n = 4 a language",
        "Every measure of the text",
        "12.5[6.2, 25.0]166441bfloat16 with NF4 matricesyes0.80.957710.0512yes",  # pass@1 with its conditions
        "Own expert first by class of token",
        "do </script> it",
    ):
        assert shown in page.text
    assert "base float32, expert bfloat16, mixture float32 with NF4 matrices" in page.text
    assert "quantizationnf4" in page.text  # in the mixture's conditions
    check_manifest(out)
    assert {path.parent.name for path in (out / "runs").glob("*/run.json")} == set(json.loads((out / "report.json").read_text())["sources"])
    assert page.text.count(FEW_NOTE) >= 4, "under the cards, both tables and the means"
    names = ("means", "distributions", "gates", "training")
    assert {path.name for path in out.glob("*.png")} == {f"{name}{ending}.png" for name in names for ending in ("", "-dark")}
    markdown = (out / "report.md").read_text()
    assert "| C++ | 4 | 25.0 [20.0, 30.0]† | 60.0 [50.0, 70.0]† |" in markdown
    assert "| C++ | Base | wording | 25.0 [10.0, 40.0] |" in markdown
    assert (
        "| expert-cpp.training, training | cpu | float32 with NF4 matrices | 2.50 M | 1.50 M | 0.12 M | 1.50 GiB | 8 | 150.0 | 4 |"
        in markdown
    )
    assert "| Best validation loss | Seconds to the last logged step |" in markdown  # as a log of a run that took longer says it
    assert "| Tokens/s | Seconds in all |" in markdown
    assert all(f"({name}.png)" in markdown for name in names)


def test_markdown_has_the_sections_of_the_page(made: tuple[Path, str]) -> None:
    out, _ = made
    of_page = [unescape(title) for title in re.findall("<h2>(.*?)</h2>", (out / "report.html").read_text())]
    of_markdown = re.findall("^## (.*)$", (out / "report.md").read_text(), re.MULTILINE)
    assert of_markdown == [title for title in of_page if title != TOKEN_BY_TOKEN] and len(of_markdown) == 11


def test_the_parts_of_a_gates_loss_have_panels_of_their_own() -> None:
    """Each with the log's own values, and with a scale on which it is seen: a load loss of 0.002 beside a z-loss of 5."""
    gate = [{"step": step, "loss": 2.5, "load_loss": 0.002 / step, "z_loss": 5.0 * step} for step in (1, 2)]
    logs = [("expert", [{"step": 1, "loss": 3.0}, {"step": 1, "eval_loss": 2.0}]), ("gate", [*gate, {"step": 2, "eval_loss": 1.5}])]
    figure = training_figure(logs, THEMES["light"])
    shown = {axis.get_title(): [line.get_xydata().tolist() for line in axis.lines] for axis in figure.axes if axis.get_visible()}
    assert shown == {
        "expert": [[[1, 3.0]], [[1, 2.0]]],
        "gate": [[[1, 2.5], [2, 2.5]], [[2, 1.5]]],
        "gate\nload loss": [[[1, 0.002], [2, 0.001]]],
        "gate\nz-loss": [[[1, 5.0], [2, 10.0]]],
    }
    tops = {axis.get_title(): axis.get_ylim() for axis in figure.axes}
    assert tops["gate\nload loss"] == pytest.approx((0, 0.0021)) and tops["gate\nz-loss"] == pytest.approx((0, 10.5))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["training", "validation", "part of a gate's loss"]


def test_the_loss_of_preferences_is_not_said_to_be_per_token() -> None:
    expert = [{"step": 1, "loss": 3.0}, {"step": 1, "eval_loss": 2.0}]
    preferences = [{"step": 1, "loss": 0.69, "rewards/margins": 0.0}, {"step": 1, "eval_loss": 0.6, "eval_rewards/margins": 0.1}]
    logs = [("expert", expert), ("align", preferences), ("align, no training loss", preferences[1:])]
    units = {"expert": "nats per token", "align": "preference loss per pair", "align, no training loss": "preference loss per pair"}
    figure = training_figure(logs, THEMES["light"])
    assert {axis.get_title(): axis.get_ylabel() for axis in figure.axes} == units
    assert {label: row["loss_unit"] for label, row in training_summary(logs).items()} == units


def test_every_number_leads_to_the_runs_that_it_came_from(made: tuple[Path, str], inputs: list[str]) -> None:
    out, _ = made
    page = Page((out / "report.html").read_text())
    for targets in page.links.values():
        for target in targets:
            assert target[1:] in page.ids if target.startswith("#") else (out / target).is_file()
    for folder in inputs[:6]:
        assert (out / "runs" / Path(folder).name / "run.json").read_bytes() == (Path(folder) / "run.json").read_bytes()
    assert set(page.links["25.0"]) >= {"runs/base/run.json"}  # Table 1's base in C++
    assert page.links["12.5"] == ["runs/pass/run.json"]
    assert set(page.links["96.4 %"]) == {page.links["96.4 %"][0]}
    text = (out / "report.html").read_text()
    kept = text.split(f"<li id='{page.links['96.4 %'][0][1:]}'>")[1].split("</li>")[0]
    assert {part.split("/")[1] for part in kept.split("href='")[1:]} == {"expert-cpp", "expert-java", "mixture"}
    cells = text.split("<td>")[1:]  # cells that are not labels
    plain = [cell.split("</td>")[0] for cell in cells if "href=" not in cell.split("</td>")[0]]
    assert {cell for cell in plain if any(sign.isdigit() for sign in cell)} == set()
    for title in ("<section class='routed'>", *(f"<figure id='{name}'>" for name in ("means", "distributions", "gates", "training"))):
        assert "href='runs/" in text.split(title)[1].split("</figure>")[0], title  # what is drawn, and the weights of tokens
    markdown = (out / "report.md").read_text()
    assert set(re.findall(r"^- \[.*\]\((.*)\)$", markdown, re.MULTILINE)) == {str(path.relative_to(out)) for path in out.glob("runs/*/*")}
    assert "## The score and its parts" in markdown


def test_training_folders_of_one_name_have_a_row_and_a_panel_each(tmp_path: Path, write_codebleu_run: WriteRun) -> None:
    """Also without a run.json, and beside a scored run of that name."""
    base = write_codebleu_run(tmp_path, "expert-cpp", "base", BASE)
    places = [tmp_path / place / "expert-cpp" for place in "abcd"]
    for losses, place in enumerate(places, start=1):
        place.mkdir(parents=True)
        (place / "log.jsonl").write_text(f'{{"step": 1, "loss": {losses}}}\n')
        if place.parent.name in "ab":
            write_json(place / "run.json", {"figures": {"peak_bytes": losses}})
    flags = ["--training", *map(str, places), "--out", str(tmp_path / "out")]
    assert run_command(main, parse(), [str(base), *flags]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [row["last_loss"] for row in report["training"].values()] == [1, 2, 3, 4]
    assert [row["peak_bytes"] for row in report["cost"]] == [1, 2]
    behind = [row["sources"] for row in report["training"].values()]
    assert [
        [json.loads((tmp_path / "out" / report["sources"][name]).read_text())["figures"]["peak_bytes"] for name in names]
        for names in behind
    ] == [[1], [2], [], []]


def test_links_to_runs_of_any_name_work(tmp_path: Path, write_codebleu_run: WriteRun) -> None:
    """`#` begins an anchor in a link, `%` a character's code."""
    base = write_codebleu_run(tmp_path, "base #1 100% <a>", "base", BASE)
    assert run_command(main, parse(), [str(base), "--out", str(tmp_path / "out")]) == 0
    links = [target for targets in Page((tmp_path / "out" / "report.html").read_text()).links.values() for target in targets]
    links += re.findall(r"^- \[.*\]\((.*)\)$", (tmp_path / "out" / "report.md").read_text(), re.MULTILINE)
    (link,) = {link for link in links if not link.startswith("#")}
    assert (tmp_path / "out" / unquote(urlsplit(link).path)).is_file(), link


def test_pass_rates_alone_make_a_report(inputs: list[str], tmp_path: Path) -> None:
    assert run_command(main, parse(), [inputs[5], "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "report.html").read_text()
    assert "runs/pass/run.json" in text
    assert "Table 1" not in text


def test_what_the_runs_do_not_bear_out_is_not_said(tmp_path: Path, write_codebleu_run: WriteRun) -> None:
    """That each expert sees its own language only, where one run answers for two; that a point is the expert's median, where none is."""
    base = write_codebleu_run(tmp_path, "base", "base", BASE)
    expert = write_codebleu_run(tmp_path, "expert", "expert", EXPERTS)
    for name, runs, picked in (("both", [base, expert], "expert"), ("base-alone", [base], "base")):
        assert run_command(main, parse(), [*map(str, runs), "--out", str(tmp_path / "out" / name)]) == 0
        report = json.loads((tmp_path / "out" / name / "report.json").read_text())
        assert report["texts"]["generations"].endswith(f"the one at which the {picked} has its median score.")
        assert not any("the language's expert" in row["text"] for row in report["headlines"])
    shared = json.loads((tmp_path / "out" / "both" / "report.json").read_text())
    assert shared["headlines"][0]["text"].startswith("the base's CodeBLEU by the experts given")
    assert shared["texts"]["table1"].endswith("for difference and ratio. expert stands as the expert of C++, Java.")


def test_of_completions_made_elsewhere_no_decoding_is_said(tmp_path: Path, write_codebleu_run: WriteRun) -> None:
    """They are compared with a model's all the same."""
    base = write_codebleu_run(tmp_path, "base", "base", BASE)
    given = write_codebleu_run(tmp_path, "mixture", "mixture", MIXTURE, samples={"path": "given.jsonl"}, prompt_template=None)
    for name, runs in (("made", [base]), ("given", [base, given])):
        assert run_command(main, parse(), [*map(str, runs), "--out", str(tmp_path / "out" / name)]) == 0
        summary = json.loads((tmp_path / "out" / name / "report.json").read_text())["texts"]["summary"]
        assert ("greedy decoding" in summary) == (name == "made")
        assert ("the completions of mixture were made elsewhere, in a way that is not recorded" in summary) == (name == "given")


def test_a_report_of_the_base_alone_has_no_tables(tmp_path: Path, write_codebleu_run: WriteRun) -> None:
    base = write_codebleu_run(tmp_path, "base", "base", {"cpp": {"test": [0.0, 0.0]}})
    assert run_command(main, parse(), [str(base), "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["tables"] == {"table1": {}, "table2": {}}
    assert report["details"]["cpp"]["base"]["test"]["codebleu"] == 0


def test_mistakes_end_with_status_2_and_nothing_written(inputs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    for arguments in ([str(tmp_path / "absent")], [inputs[4]], [*inputs, str(tmp_path / "absent")]):
        assert run_command(main, parse(), [*arguments, "--out", str(out)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
        assert not out.exists()
    out.mkdir()
    (out / "mine").touch()
    assert run_command(main, parse(), [*inputs, "--out", str(out)]) == 2
    assert [path.name for path in out.iterdir()] == ["mine"]
