"""A study's folder in a report: its comparison, and the runs behind each of its rows."""

import json
import re
from html import unescape
from pathlib import Path

import yaml

import eval.study as study
from eval.report import main, parse
from model.cli import run_command


def test_the_comparison_of_a_study_leads_to_its_runs(mixture_folder: Path, base_folder: Path, data_folder: Path, tmp_path: Path) -> None:
    systems = [
        {"name": "base", "model": str(base_folder)},
        {"name": "experts", "model": {"cpp": str(base_folder), "java": str(mixture_folder)}},
        {"name": "ours", "model": str(mixture_folder)},
    ]
    settings = {"data": str(data_folder), "train": None, "langs": ["java", "cpp"], "limit": 4, "lengths": [3, 6], "systems": systems}
    (tmp_path / "study.yml").write_text(yaml.safe_dump(settings))
    assert run_command(study.main, study.parse(), [str(tmp_path / "study.yml"), "--out", str(tmp_path / "study")]) == 0
    assert run_command(main, parse(), [str(tmp_path / "study"), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    result = json.loads((tmp_path / "study" / "study.json").read_text())
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
    for run in (tmp_path / "study" / "6").iterdir():
        copied = tmp_path / "out" / "runs" / f"study-6-{run.name}" / "run.json"
        assert copied.read_bytes() == (run / "run.json").read_bytes()
