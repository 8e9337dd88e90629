"""A study's folder in a report: its comparison, and the runs behind each of its rows."""

import json
import re
import shutil
from html import unescape
from pathlib import Path

import pytest
import yaml

import eval.study as study
from eval.report import main, parse
from model.cli import run_command


@pytest.fixture(scope="module")
def study_folder(mixture_folder: Path, base_folder: Path, data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    systems = [
        {"name": "base", "model": str(base_folder)},
        {"name": "experts", "model": {"cpp": str(base_folder), "java": str(mixture_folder)}},
        {"name": "ours", "model": str(mixture_folder)},
    ]
    settings = {"data": str(data_folder), "train": None, "langs": ["java", "cpp"], "limit": 4, "lengths": [3, 6], "systems": systems}
    (folder / "study.yml").write_text(yaml.safe_dump(settings))
    assert run_command(study.main, study.parse(), [str(folder / "study.yml"), "--out", str(folder / "study")]) == 0
    return folder / "study"


def test_the_comparison_of_a_study_leads_to_its_runs(study_folder: Path, tmp_path: Path) -> None:
    assert run_command(main, parse(), [str(study_folder), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    result = json.loads((study_folder / "study.json").read_text())
    for length in ("3", "6"):
        for kind, figures in result["lengths"][length].items():
            title = {"wording": "Unseen wordings of seen problem families", "family": "Unseen problem families"}[kind]
            table = page.split(f"<h3>{title}, at most {length} new tokens</h3>")[1].split("</table>")[0]
            for name, langs in figures["systems"].items():
                row = re.search(rf"<tr><td class='label'>{name}</td>(.*?)</tr>", table)
                assert row
                value = re.search(r">(-?[\d.]+)</a>", row[1])  # the first language's CodeBLEU
                assert value
                assert value[1] == f"{100 * langs['java']['codebleu']['value']:.1f}"
            (anchor,) = set(re.findall(r"href='#(from-\d+)'", re.findall(r"<tr>.*?experts</td>(.*?)</tr>", table)[0]))
            behind = unescape(page.split(f"<li id='{anchor}'>")[1].split("</li>")[0])
            assert set(re.findall(r"href='([^']*)'", behind)) == {
                f"runs/study-{length}-{run}/run.json" for run in ("base", "experts-java", "experts-cpp")
            }
    for run in (study_folder / "6").iterdir():
        copied = tmp_path / "out" / "runs" / f"study-6-{run.name}" / "run.json"
        assert copied.read_bytes() == (run / "run.json").read_bytes()


def test_a_study_of_an_earlier_version_is_shown(study_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(study_folder, tmp_path / "study")
    path = tmp_path / "study" / "study.json"
    result = json.loads(path.read_text())
    for key in ("compile", "experts", "train", "batch_size"):
        del result["study"][key]
    for system in result["study"]["systems"]:
        del system["stop"], system["adapter"]
    path.write_text(json.dumps(result))
    reports = []
    for name, folder in (("before", study_folder), ("after", tmp_path / "study")):
        assert run_command(main, parse(), [str(folder), "--out", str(tmp_path / name)]) == 0
        reports.append(json.loads((tmp_path / name / "report.json").read_text())["study"])
    assert reports[0] == reports[1]


@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [
        (("systems", 0, "model"), ["x"], "systems: base: model must be a text, not ['x']"),
        (("systems", 0, "model"), None, "systems: base: model must be a text, not None"),
        (("systems", 1, "model"), {"cpp": 3}, "systems: experts: model: cpp must be a text, not 3"),
        (("systems", 2, "adapter"), 3, "systems: ours: adapter must be a text, not 3"),
        (("systems", 2, "name"), ["ours"], "systems[2]: name must be a text, not ['ours']"),
        (("systems", 2, "name"), "theirs", "has wording figures of 'ours', which is none of its systems: base, experts, theirs"),
        (("experts",), ["experts"], "experts must be a text, not ['experts']"),
    ],
)
def test_a_damaged_study_is_named(
    place: tuple[str | int, ...], value: object, sentence: str, study_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(study_folder, tmp_path / "study")
    path = tmp_path / "study" / "study.json"
    result = inner = json.loads(path.read_text())
    for key in ("study", *place[:-1]):
        inner = inner[key]
    inner[place[-1]] = value
    path.write_text(json.dumps(result))
    assert run_command(main, parse(), [str(tmp_path / "study"), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert str(path) in said and sentence in said


def test_what_was_seen_in_training_stands_in_the_report(study_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(study_folder, tmp_path / "study")
    path = tmp_path / "study" / "study.json"
    result = json.loads(path.read_text())
    result["contamination"] = {"java": {"family": {"n": 4, "median": 0.625, "greatest": 0.875, "seen": 3}}}
    score = {"codebleu": {"value": 0.4375, "low": 0.25, "high": 0.5}}
    result["lengths"]["3"]["family"]["unseen"] = {"points": {"java": {"n": 1}}, "systems": {"ours": {"java": score, "all": score}}}
    result["prompt_templates"]["ours"] = "another"
    path.write_text(json.dumps(result))
    assert run_command(main, parse(), [str(tmp_path / "study"), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    seen = page.split("<h3>Points whose programs stand in training rows</h3>")[1].split("</table>")[0]
    assert re.findall(r"href='runs/study/run.json'>([^<]*)</a>", seen) == ["4", "62 %", "88 %", "3"]
    unseen = page.split("<h3>CodeBLEU on the points that count as unseen: unseen problem families, at most 3 new tokens</h3>")[1]
    assert "<td><a class='n' href='runs/study-3-ours/run.json'>43.8</a><span class='interval'>[25.0, 50.0]</span></td>" in unseen
    markdown = (tmp_path / "out" / "report.md").read_text()
    for text in (unescape(page), markdown):
        assert "A point counts as seen if at least 70 % of its program's 5-token shingles stand in programs of the training rows." in text
        assert "Asked in a prompt template of their own, not in that of base: ours." in text
    result["contamination"] = {"java": {"family": {"n": 4}}}
    path.write_text(json.dumps(result))
    assert run_command(main, parse(), [str(tmp_path / "study"), "--out", str(tmp_path / "damaged")]) == 2
