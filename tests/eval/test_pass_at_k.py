"""The estimator, the command, and the task sets' own traps, with the sets' references where the data is at hand."""

import gzip
import itertools
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import eval.pass_at_k as command
from eval import completions
from eval.bootstrap import wilson
from eval.judge import Judge, Verdict
from eval.pass_at_k import run
from eval.pass_rates import pass_at_k
from eval.sandbox import Limits, Sandbox, SandboxError
from eval.tasks import Task, load_tasks
from model.load import load_tokenizer, model_fingerprint
from model.output import check_manifest, locked
from model.prompt import format_prompt
from train.data.preferences import load_preferences

ADD = {"task_id": "T/0", "prompt": "def add(a, b):\n", "entry_point": "add", "description": "add", "language": "python"}
ROWS = [
    {**ADD, "test": "def check(f):\n    assert f(1, 2) == 3\n"},
    {**ADD, "task_id": "T/1", "test": "def check(f):\n    assert f(2, 2) == 4\n"},
]
RIGHT, WRONG = "    return a + b\n", "    return a * b\n"  # both are right for 2 and 2
SAMPLES = [("T/0", RIGHT), ("T/0", WRONG), ("T/0", WRONG), ("T/1", RIGHT), ("T/1", WRONG), ("T/1", "    return (\n")]


@pytest.fixture(scope="module")
def judge(sandbox: Sandbox) -> Iterator[Judge]:
    with Judge(sandbox, Limits(wall_s=20)) as judge:
        yield judge


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    paths = {"tasks": tmp_path / "tasks.jsonl", "samples": tmp_path / "given.jsonl", "out": tmp_path / "run"}
    paths["tasks"].write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    paths["samples"].write_text("".join(json.dumps({"task_id": name, "completion": text}) + "\n" for name, text in SAMPLES))
    return paths


def flags(files: dict[str, Path], *more: str) -> list[str]:
    source = ["--tasks", str(files["tasks"]), "--samples", str(files["samples"])]
    return [*source, "--lang", "python", "-k", "1,3", "--out", str(files["out"]), "--jobs", "2", *more]


@pytest.mark.parametrize("n", range(1, 8))
def test_the_estimate_is_the_share_of_subsets_with_a_pass(n: int) -> None:
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = list(itertools.combinations(range(n), k))
        share = sum(any(place < c for place in subset) for subset in subsets) / len(subsets)
        assert pass_at_k(n, c, k) == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(0, 0, 1), (5, 6, 1), (5, 1, 6), (5, 1, 0), (5, -1, 1)])
def test_no_estimate_without_enough_samples(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"n={n}, c={c}, k={k}"):
        pass_at_k(n, c, k)


def test_given_samples_are_judged_and_counted(sandbox: Sandbox, files: dict[str, Path]) -> None:
    assert run(flags(files)) == 0
    check_manifest(files["out"])
    facts = json.loads((files["out"] / "run.json").read_text())
    figures = facts["figures"]
    assert figures["pass_at_k"]["1"]["value"] == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert figures["pass_at_k"]["3"]["value"] == 1.0
    assert figures["pass_at_k"]["1"]["low"] <= 0.5 <= figures["pass_at_k"]["1"]["high"]
    assert {name: count for name, count in figures["outcomes"].items() if count} == {"passed": 3, "failed": 2, "compile error": 1}
    assert facts["sandbox"]["isolated"] is True
    python = subprocess.run(["/usr/bin/python3", "--version"], capture_output=True, text=True, check=True).stdout
    assert facts["tools"] == {"python3": python.strip()}
    assert "\ndef " in facts["stop"] and facts["fenced"] == 0 and facts["precision"] is None
    rows = [json.loads(line) for line in (files["out"] / "samples.jsonl").read_text().splitlines()]
    assert [(row["task_id"], row["completion"]) for row in rows] == SAMPLES and not any(row["whole"] for row in rows)
    assert [row["sample"] for row in rows] == [0, 1, 2, 0, 1, 2]
    assert not list(files["out"].parent.glob(".*"))


def test_sample_rows_are_what_alignment_reads(sandbox: Sandbox, files: dict[str, Path]) -> None:
    """The prompt is the one that the model would see; the pairs are of one task each."""
    assert run(flags(files)) == 0
    rows = [json.loads(line) for line in (files["out"] / "samples.jsonl").read_text().splitlines()]
    assert all(row["prompt"] == ADD["prompt"] and row["lang"] == "python" for row in rows)
    pairs, _ = load_preferences([files["out"]], 4, seed=0)
    expected = {("T/0", RIGHT, WRONG), ("T/1", RIGHT, "    return (\n"), ("T/1", WRONG, "    return (\n")}
    assert {(pair.task, pair.chosen, pair.rejected) for pair in pairs} == expected
    assert {pair.prompt for pair in pairs} == {ADD["prompt"]}


def test_references_are_the_tasks_own_solutions(sandbox: Sandbox, files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    source = ["--tasks", str(files["tasks"]), "--references", "--lang", "python", "--out", str(files["out"])]
    assert run(source) == 2
    assert "no task of this set comes with a reference solution" in capsys.readouterr().err
    files["tasks"].write_text("".join(json.dumps({**row, "canonical_solution": RIGHT}) + "\n" for row in ROWS))
    assert run(source) == 0
    rows = [json.loads(line) for line in (files["out"] / "samples.jsonl").read_text().splitlines()]
    assert [(row["task_id"], row["completion"], row["outcome"]) for row in rows] == [(f"T/{i}", RIGHT, "passed") for i in range(2)]
    facts = json.loads((files["out"] / "run.json").read_text())
    low, high = wilson(2, 2)  # 2 of 2 is not certain
    assert facts["figures"]["pass_at_k"]["1"] == {"value": 1.0, "low": low, "high": high, "interval": "wilson", "tasks": 2}
    assert low < 0.5
    assert facts["judging"]["programs"] == 2 and facts["judging"]["seconds"] > 0 and facts["cost"] is None


def test_no_change_in_few_tasks_is_not_certain(sandbox: Sandbox, files: dict[str, Path]) -> None:
    assert run(flags(files)) == 0
    before, files["out"] = files["out"], files["out"].with_name("after")
    assert run(flags(files, "--before", str(before))) == 0
    change = json.loads((files["out"] / "run.json").read_text())["figures"]["before"]["1"]["difference"]
    assert (change["low"], change["value"], change["high"]) == pytest.approx((-wilson(0, 2)[1], 0, wilson(0, 2)[1]))


def test_the_change_from_an_earlier_run_is_paired(sandbox: Sandbox, files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(flags(files)) == 0
    files["samples"].write_text("".join(json.dumps({"task_id": name, "completion": RIGHT}) + "\n" for name, _ in SAMPLES))
    before, files["out"] = files["out"], files["out"].with_name("after")
    assert run(flags(files, "--before", str(before))) == 0
    change = json.loads((files["out"] / "run.json").read_text())["figures"]["before"]
    assert {name: change["1"][name]["value"] for name in ("before", "after", "difference")} == {
        "before": 0.5,
        "after": 1.0,
        "difference": 0.5,
    }
    assert change["1"]["tasks"] == 2 and 0 < change["1"]["difference"]["low"] <= 0.5 <= change["1"]["difference"]["high"]
    assert "pass@1    before 50.0, after 100.0, difference +50.0" in capsys.readouterr().out
    files["out"] = files["out"].with_name("other")
    assert run(flags(files, "--before", str(before), "--timeout", "5")) == 2
    assert "cannot be compared with this run: timeout is 10.0 there and 5.0 here" in capsys.readouterr().err
    files["tasks"].write_text(json.dumps(ROWS[0]) + "\n")
    assert run(flags(files, "--before", str(before))) == 2
    assert "its tasks are others (1 differ, such as 'T/1')" in capsys.readouterr().err
    assert run(flags(files, "--before", str(before.parent))) == 2
    assert "is no finished run of eval.pass_at_k" in capsys.readouterr().err


def stop(*_: Any) -> Any:
    raise KeyboardInterrupt


def interrupt(arguments: list[str], rows: str, out: Path) -> Path:
    """The folder of unfinished work of a run that was interrupted once it had written the verdicts `rows`."""

    def judge_one(tasks: Any, samples: Any, sandbox: Any, limits: Any, log: Path, jobs: int) -> Any:
        log.write_text(rows)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "judge_samples", judge_one)
        assert run(arguments) == 130
    return out.with_name(f".{out.name}.unfinished")


VERDICT = json.dumps({"task_id": "T/0", "completion": RIGHT, "outcome": "passed", "detail": ""}) + "\n"


@pytest.mark.parametrize(
    ("flag", "value", "fact"),
    [("--timeout", "3", "timeout"), ("--memory", "99", "memory"), ("--limit", "1", "limit"), ("--seed", "5", "seed")],
)
def test_verdicts_of_other_conditions_are_not_taken(
    flag: str, value: str, fact: str, sandbox: Sandbox, files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    files["samples"].write_text(3 * (json.dumps({"task_id": "T/0", "completion": RIGHT}) + "\n"))
    work = interrupt(flags(files), VERDICT, files["out"])
    assert run(flags(files, flag, value)) == 2
    assert f"{fact} was" in capsys.readouterr().err
    assert (work / "samples.jsonl").read_text() == VERDICT and not files["out"].exists()
    assert run([*flags(files), "-k", "1"]) == 0, "another k asks nothing else of the programs"
    assert not work.exists()


def test_verdicts_of_another_task_file_or_without_the_sandbox_are_not_taken(
    sandbox: Sandbox, files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    work = interrupt(flags(files, "--unsafe-no-sandbox"), VERDICT, files["out"])
    assert run(flags(files)) == 2
    assert "(sandbox differs)" in capsys.readouterr().err
    files["tasks"].write_text(files["tasks"].read_text().replace("== 3", "== 2"))
    assert run(flags(files, "--unsafe-no-sandbox")) == 2
    assert "(data differs)" in capsys.readouterr().err
    assert (work / "samples.jsonl").read_text() == VERDICT and not files["out"].exists()


def test_a_run_without_a_verdict_leaves_nothing(sandbox: Sandbox, files: dict[str, Path]) -> None:
    assert not interrupt(flags(files), "", files["out"]).exists()


def test_two_runs_at_a_time_are_refused(sandbox: Sandbox, files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    work = files["out"].with_name(".run.unfinished")
    with locked(work):
        assert run(flags(files)) == 2
        assert f"another process is at work in {work}" in capsys.readouterr().err
    assert run(flags(files)) == 0
    assert not work.exists()


def test_judged_rows_are_kept_and_unjudged_ones_tried_again(
    sandbox: Sandbox, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"task_id": "T/0", "completion": RIGHT, "outcome": "passed", "detail": ""},
        {"task_id": "T/0", "completion": WRONG, "outcome": "sandbox error", "detail": "gone"},
    ]
    cut = '{"task_id": "T/1", "comple'
    interrupt(flags(files), "".join(json.dumps(row) + "\n" for row in rows) + cut, files["out"])
    asked = []

    def judge(self: Judge, task: Task, completion: str) -> Verdict:
        asked.append((task.task_id, completion))
        return Verdict("tool missing", "no compiler") if task.task_id == "T/1" else Verdict("failed")

    monkeypatch.setattr(Judge, "judge", judge)
    assert run(flags(files)) == 1
    assert sorted(asked) == sorted({("T/0", WRONG), *SAMPLES[3:]})
    figures = json.loads((files["out"] / "run.json").read_text())["figures"]
    assert figures["outcomes"]["tool missing"] == 3
    assert figures["pass_at_k"]["1"] == {
        "value": pytest.approx(1 / 3),
        "low": None,
        "high": None,
        "interval": None,
        "tasks": 1,
    }
    assert "3 completions could not be judged" in capsys.readouterr().err


def test_it_refuses_where_the_sandbox_does_not_hold(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def closed(*, unsafe: bool = False) -> Sandbox:
        if not unsafe:
            raise SandboxError("it reads files of the host")
        return Sandbox(unsafe=True)

    monkeypatch.setattr(Sandbox, "open", closed)
    assert run(flags(files)) == 2
    assert "it reads files of the host. --unsafe-no-sandbox" in capsys.readouterr().err
    assert not files["out"].exists()
    assert run(flags(files, "--unsafe-no-sandbox")) == 0
    facts = json.loads((files["out"] / "run.json").read_text())
    assert facts["sandbox"] == {"isolated": False}
    assert facts["figures"]["outcomes"]["passed"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f["samples"].write_text('{"task_id": "T/9", "completion": ""}\n'), "'T/9' is the task_id of none of the 2 tasks"),
        (lambda f: f["samples"].write_text('{"task_id": "T/0"}\n'), "given.jsonl, line 1, lacks completion"),
        (lambda f: f["samples"].write_text('\n{"task_id": "T/0", "completion": 5}\n'), "line 2: completion must be a text, not 5"),
        (lambda f: f["samples"].write_text('{"task_id": ["T/0"], "completion": ""}\n'), "line 1: task_id must be a text, not ['T/0']"),
        (lambda f: f["samples"].write_text("\n"), "holds no completions"),
        (lambda f: f["tasks"].write_text("{}\n"), "line 1: its columns are those of no known task set"),
        (lambda f: f["tasks"].write_text("x\n"), "line 1"),
        (lambda f: f["tasks"].write_text(json.dumps({**ROWS[0], "language": "java"}) + "\n"), "it is a task in java"),
        (lambda f: f["tasks"].write_text(2 * (json.dumps(ROWS[0]) + "\n")), "holds a task twice"),
        (lambda f: f["tasks"].unlink(), "there is no task file"),
        (lambda f: f["samples"].unlink(), "given.jsonl is missing"),
    ],
)
def test_a_users_mistake_is_named(change: Any, message: str, files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    change(files)
    assert run(flags(files)) == 2
    assert message in capsys.readouterr().err
    assert not files["out"].exists() and not list(files["out"].parent.glob(".*"))


@pytest.mark.parametrize("k", ["0", "", "1,x", "-1", "1,,2"])
def test_k_is_a_list_of_counts(k: str, files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*flags(files), f"-k={k}"]) == 2
    assert "-k takes numbers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("-k=1,4", "pass@4 needs 4 completions of a task; no task has more than 3"),
        ("-n=3", "no completion is generated from --samples or --references: -n would do nothing"),
        ("--temperature=0.8", "--temperature would do nothing"),
        ("--stop=x", "--stop would do nothing"),
        ("--device=cpu", "--device would do nothing"),
        ("--timeout=0", "--timeout must be a number of seconds above 0, at most 86400 (a day), not 0.0"),
        ("--timeout=1e8", "--timeout must be"),
        ("--timeout=-5", "--timeout must be"),
        ("--timeout=nan", "--timeout is nan; it must be a finite number"),
        ("--timeout=inf", "--timeout is inf; it must be a finite number"),
        ("--memory=0", "--memory must be at least 1, not 0"),
        ("--memory=-1", "--memory must be"),
        ("--memory=99999999", "--memory must be at most 16777216 MiB (16 TiB), not 99999999"),
        ("-n=0", "-n must be at least 1, not 0"),
        ("--limit=0", "--limit must be"),
        ("--limit=-1", "--limit must be"),
        ("--jobs=0", "--jobs must be"),
        ("--batch-size=0", "--batch-size must be"),
        ("--max-new-tokens=0", "--max-new-tokens must be"),
        ("--temperature=-1", "--temperature must be 0, for the likeliest token, or at least 0.0001"),
        ("--top-p=0", "--top-p must lie in (0, 1]"),
    ],
)
def test_no_flag_makes_every_program_wrong_or_does_nothing(
    flag: str, message: str, files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*flags(files), flag]) == 2
    assert message in capsys.readouterr().err
    assert not files["out"].exists() and not list(files["out"].parent.glob(".*"))


def test_a_model_writes_and_is_judged(
    sandbox: Sandbox, base_folder: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copytree(base_folder, files["out"].with_name("model")))
    arguments = ["--model", str(model), "--tasks", str(files["tasks"]), "--lang", "python", "-k", "1,2", "--out", str(files["out"])]
    assert run(arguments) == 2, "equal completions would be counted as two"
    assert "at --temperature 0 all completions of a task are equal" in capsys.readouterr().err
    assert run([*arguments, "-k", "1", "--stop", ""]) == 2
    assert "a stop text is empty" in capsys.readouterr().err
    sampled = [*arguments, "-k", "1,3", "-n", "2", "--temperature", "1", "--max-new-tokens", "8", "--device", "cpu"]
    sampled += ["--stop", "\nend", "\n@"]

    with monkeypatch.context() as patch:
        patch.setattr(command, "judge_samples", stop)
        assert run(sampled) == 130
    log = files["out"].parent / ".run.unfinished" / "completions.jsonl"
    kept = [sample["completion"] for line in log.read_text().splitlines() for sample in json.loads(line)["samples"]]
    for other in (["--seed", "1"], ["--precision", "int8"], ["--batch-size", "2"]):
        capsys.readouterr()
        assert run([*sampled, *other]) == 2
        assert f"({other[0][2:].replace('-', '_')} was" in capsys.readouterr().err
    trained = load_file(model / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in trained.items()}, model / "model.safetensors", {"format": "pt"})
    assert run(sampled) == 2, "another model, trained into the same folder"
    assert "(fingerprint differs)" in capsys.readouterr().err
    save_file(trained, model / "model.safetensors", {"format": "pt"})
    with monkeypatch.context() as patch:
        patch.setattr(completions, "load_model", stop)  # completions are not written again
        assert run(sampled) == 0
    rows = [json.loads(line) for line in (files["out"] / "samples.jsonl").read_text().splitlines()]
    assert [row["completion"] for row in rows] == kept
    assert len(rows) == 6 and len({row["completion"] for row in rows}) > 1
    facts = json.loads((files["out"] / "run.json").read_text())
    cost = facts["cost"]
    assert facts["precision"] == "exact" and facts["fingerprint"] == model_fingerprint(base_folder)
    assert {"\nend", "\n@", "\ndef "} < set(facts["stop"])
    assert facts["n"] == 3  # the largest k, if that is more
    assert facts["top_k"] == 0  # of a sampled run: none is cut off
    assert 6 <= cost["generated_tokens"] <= 6 * 8 and cost["tokens_per_second"] > 0 and cost["peak_bytes"] > 0


def test_the_prompt_that_was_asked_is_recorded(sandbox: Sandbox, chat_folder: Path, files: dict[str, Path]) -> None:
    """The model's chat template where it was asked through it; none where the model saw the task's own prompt."""
    tokenizer = load_tokenizer(chat_folder)
    arguments = ["--model", str(chat_folder), "--tasks", str(files["tasks"]), "--lang", "python", "--limit", "1", "--max-new-tokens", "2"]
    for flag, template, before in ((["--template"], tokenizer.chat_template, format_prompt("add", "python", tokenizer)), ([], None, "")):
        out = files["out"].with_name(f"run{len(flag)}")
        assert run([*arguments, *flag, "--out", str(out)]) == 0
        assert json.loads((out / "run.json").read_text())["prompt_template"] == template
        assert json.loads((out / "samples.jsonl").read_text())["prompt"] == before + ADD["prompt"]


def test_a_completion_ends_before_its_first_stop_sequence() -> None:
    task = Task("t", "python", "", "", "f", "", "", stop=("\ndef ", "\n#"))
    assert task.cut("    a\n# b\ndef c") == "    a"
    assert task.cut("    a\n") == "    a\n"


# The sets' own references: (file, language, rows that are taken, those of them that cannot pass and why).
REFERENCES = [
    ("humaneval_x.python.jsonl.gz", "python", ["Python/0", "Python/32", "Python/38", "Python/50"], {}),
    (
        "humaneval_x.javascript.jsonl.gz",
        "javascript",
        ["JavaScript/0", "JavaScript/38", "JavaScript/112", "JavaScript/155", "JavaScript/162"],
        {"JavaScript/112": "failed", "JavaScript/155": "failed", "JavaScript/162": "failed"},
    ),
    ("humaneval_x.cpp.jsonl.gz", "cpp", ["CPP/38"], {}),
    ("humaneval_x.java.jsonl.gz", "java", ["Java/32"], {}),
    ("mbxp_sample.python.jsonl", "python", ["MBPP/1", "MBPP/4"], {}),
    ("mbxp_sample.javascript.jsonl", "javascript", ["MBJSP/1", "MBJSP/4"], {}),
    ("transcoder_gfg.python.jsonl.gz", "python", ["transcoder_gfg/ADD_1_TO_A_GIVEN_NUMBER/python"], {}),
    ("exercism.python.jsonl.gz", "python", ["exercism/anagram/python", "exercism/isogram/python"], {}),
    ("exercism.javascript.jsonl.gz", "javascript", ["exercism/linked-list/javascript", "exercism/strain/javascript"], {}),
    ("exercism.java.jsonl.gz", "java", ["exercism/forth/java"], {}),
    ("exercism.cpp.jsonl.gz", "cpp", ["exercism/rna-transcription/cpp"], {}),
    ("transcoder_gfg.cpp.jsonl.gz", "cpp", ["transcoder_gfg/ARRAY_ELEMENT_MOVED_K_USING_SINGLE_MOVES/cpp"], {}),
]
BAD = {
    "python": "    return None\n",
    "javascript": "  return undefined;\n}\n",
    "java": "        return null; } }\n",
    "cpp": "    throw 1;\n}\n",
}


@pytest.mark.parametrize(("name", "lang", "chosen", "cannot"), REFERENCES, ids=[row[0] for row in REFERENCES])
def test_references_pass_and_nothing_does_not(
    name: str, lang: str, chosen: list[str], cannot: dict[str, str], judge: Judge, shared_data: Path
) -> None:
    tasks = {task.task_id: task for task in load_tasks(str(shared_data / "eval" / name), lang)}
    for task_id in chosen:
        task = tasks[task_id]
        assert task.reference is not None
        verdict = judge.judge(task, task.reference)
        if verdict.outcome == "tool missing" and task_id not in cannot:
            pytest.skip(verdict.detail)
        assert verdict.outcome == cannot.get(task_id, "passed"), verdict.detail
    assert judge.judge(tasks[chosen[0]], BAD[lang]).outcome in ("failed", "compile error")


@pytest.mark.parametrize("lang", ["python", "javascript", "java", "cpp"])
@pytest.mark.parametrize("name", ["multipl_e/humaneval", "multipl_e/mbpp"])
def test_multipl_e_reads(name: str, lang: str, shared_data: Path) -> None:
    tasks = load_tasks(str(shared_data / "eval" / f"{name}.{lang}.jsonl.gz"), lang)
    assert len(tasks) > 150
    assert all(task.stop and task.text for task in tasks)


def test_a_corpus_program_may_name_its_function_itself(judge: Judge, tmp_path: Path) -> None:
    row = {
        "task_id": "c",
        "entry_point": "add",
        "text": "add",
        "code": "def add(a):\n    return a + 1\n",
        "cases": [[[1], 2]],
        "test": "assert add(1) == 2\n",
    }
    with gzip.open(tmp_path / "tasks.jsonl.gz", "wt") as file:
        file.write(json.dumps(row) + "\n")
    (task,) = load_tasks(str(tmp_path / "tasks.jsonl.gz"), "python")
    assert judge.judge(task, "def helper(a):\n    return a + 1\n\n\ndef plus_one(a):\n    return helper(a)\n").outcome == "passed"
    assert judge.judge(task, "def helper(a):\n    return a + 1\n\n\ndef plus_one(a):\n    return a\n").outcome == "failed"
    assert judge.judge(task, "").outcome == "failed"


@pytest.mark.parametrize(
    ("lang", "right", "wrong"),
    [
        ("python", "    return len(string)\n", "    return 0\n"),
        ("javascript", "    return string.length;\n}\n", "    return 0;\n}\n"),
        ("java", "        return (long) string.length();", "        return 0L;"),
        ("cpp", "    return string.length();", "    return 0;"),
    ],
)
def test_multipl_e_is_judged(lang: str, right: str, wrong: str, judge: Judge, shared_data: Path) -> None:
    tasks = load_tasks(str(shared_data / "eval" / f"multipl_e/humaneval.{lang}.jsonl.gz"), lang)
    (task,) = (task for task in tasks if task.task_id == "HumanEval_23_strlen")
    verdict = judge.judge(task, task.cut(right + "\n}\nint main" * (lang == "cpp") + "\n    }\n    int more() {" * (lang == "java")))
    if verdict.outcome == "tool missing":
        pytest.skip(verdict.detail)
    assert verdict.outcome == "passed", verdict.detail
    assert judge.judge(task, wrong).outcome == "failed"
