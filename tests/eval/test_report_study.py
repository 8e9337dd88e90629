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
