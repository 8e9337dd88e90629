"""The whole report from hand-written runs: numbers by hand, one page without anything to fetch, and nothing half-written."""

import json
from collections.abc import Callable
from contextlib import redirect_stdout
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from eval.report import main, parse
from eval.runs import ARRAYS, ROUTING
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
        write_json(routing / ARRAYS, {"experts": list(EXPERTS), "languages": rows})
        write_run(routing, seed=0, figures={"cpp": {"own_top1": 0.8}}, program=ROUTING)
    log = folder / "expert-cpp.training"
    log.mkdir()
    (log / "log.jsonl").write_text('{"step": 10, "loss": 2.5, "seconds": 4}\n{"step": 20, "loss": 1.5}\n{"step": 20, "eval_loss": 1.75}\n')
    return [*map(str, runs), str(folder / "routing"), "--training", str(log)]


@pytest.fixture(scope="module")
def made(inputs: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The report's folder, and what the command printed."""
    out = tmp_path_factory.mktemp("report") / "out"
    with redirect_stdout(StringIO()) as printed:
        assert run_command(main, parse(), [*inputs, "--title", "A < B & C", "--out", str(out)]) == 0
    return out, printed.getvalue()


def _routing(top1: list[list[float]], own: int) -> dict[str, Any]:
    return {"n": 4, "tokens": 100, "top1": top1, "own_top1": [layer[own] for layer in top1], "own_topk": [1.0, 1.0]}


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
    assert report["training"] == {
        "expert-cpp.training": {"steps": 20, "first_loss": 2.5, "last_loss": 1.5, "best_eval_loss": 1.75, "seconds": 4}
    }
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
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "srcset", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_and_fetches_nothing(made: tuple[Path, str]) -> None:
    out, _ = made
    text = (out / "report.html").read_text()
    page = Page(text)
    assert "://" not in text.split("</style>")[0]
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
    ):
        assert shown in page.text
    assert "base float32, expert bfloat16, mixture float32 with NF4 matrices" in page.text
    assert "quantizationnf4" in page.text  # in the mixture's conditions
    check_manifest(out)
    names = ("means", "distributions", "gates", "training")
    assert {path.name for path in out.glob("*.png")} == {f"{name}{ending}.png" for name in names for ending in ("", "-dark")}
    markdown = (out / "report.md").read_text()
    assert "| C++ | 4 | 25.0 [20.0, 30.0] | 60.0 [50.0, 70.0] |" in markdown
    assert "| C++ | Base | wording | 25.0 [10.0, 40.0] |" in markdown
    assert all(f"({name}.png)" in markdown for name in names)


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
