"""What cannot be compared is refused with a sentence that names it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from eval.runs import read_inputs, read_run, read_training

WriteRun = Callable[..., Path]


def test_roles_come_from_the_name_or_else_from_what_was_found(tmp_path: Path, write_codebleu_run: WriteRun) -> None:
    scores = {"cpp": {"test": [0.5, 0.6]}}
    base = write_codebleu_run(tmp_path, "base", "base", scores)
    named = write_codebleu_run(tmp_path, "expert-cpp", "base", scores)  # a merged expert is a plain checkpoint
    found = write_codebleu_run(tmp_path, "my-4x7b", "mixture", scores)
    inputs = read_inputs([found, named, base])
    assert {role: run.path for role, run in inputs.systems.of("cpp").items()} == {"base": base, "expert": named, "mixture": found}
    assert inputs.routing is None


def test_different_points_are_refused_and_named(tmp_path: Path, write_codebleu_run: WriteRun) -> None:
    base = write_codebleu_run(tmp_path, "base", "base", {"cpp": {"test": [0.5, 0.6]}})
    expert = write_codebleu_run(tmp_path, "expert", "expert", {"cpp": {"test": [0.5, 0.6, 0.7]}})
    with pytest.raises(ValueError, match=r"base and .*expert scored different cpp points, such as 'cpp/test/2' \(test\)"):
        read_inputs([base, expert])


def test_different_lengths_are_refused(tmp_path: Path, write_codebleu_run: WriteRun) -> None:
    base = write_codebleu_run(tmp_path, "base", "base", {"cpp": {"test": [0.5]}})
    mixture = write_codebleu_run(tmp_path, "mixture", "mixture", {"cpp": {"test": [0.5]}}, max_new_tokens=650)
    with pytest.raises(ValueError, match="cannot be compared: max_new_tokens is 100 and 650"):
        read_inputs([base, mixture])


def test_two_runs_for_one_role_are_refused(tmp_path: Path, write_codebleu_run: WriteRun) -> None:
    runs = [write_codebleu_run(tmp_path, name, "expert", {"cpp": {"test": [0.5]}}) for name in ("expert-a", "expert-b")]
    with pytest.raises(ValueError, match=r"expert-a and .*expert-b are both expert runs on cpp"):
        read_inputs(runs)
    runs = [write_codebleu_run(tmp_path, name, "base", {"cpp": {"test": [0.5]}}) for name in ("base-a", "base-b")]
    with pytest.raises(ValueError, match=r"base-a and .*base-b are all base runs"):
        read_inputs(runs)


def test_an_expert_stands_for_its_own_language_alone(tmp_path: Path, write_codebleu_run: WriteRun) -> None:
    """Python's adapter on Java would be the "Java expert" of the report's tables."""
    scores = {"test": [0.5]}
    own = write_codebleu_run(tmp_path, "expert-python", "expert", {"python": scores}, adapter_lang="python")
    assert list(read_inputs([own]).systems.experts) == ["python"]
    both = write_codebleu_run(tmp_path, "expert-both", "expert", {"python": scores, "java": scores}, adapter_lang="python")
    with pytest.raises(ValueError, match=r"expert-both scored java with an adapter that was trained on python"):
        read_inputs([both])


def test_wrong_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no run .*absent"):
        read_run(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"has no run\.json"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"program": "train.expert"}))
    with pytest.raises(
        ValueError, match=r"not written by eval\.codebleu, eval\.routing, eval\.pass_at_k or eval\.study but by train\.expert"
    ):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"program": "eval.codebleu", "role": "base", "figures": {}, "max_new_tokens": 1}))
    with pytest.raises(FileNotFoundError, match=r"samples\.jsonl is missing"):
        read_run(tmp_path)
    (tmp_path / "samples.jsonl").write_text('{"lang": "cpp"\n')
    with pytest.raises(ValueError, match="line 1, is not JSON"):
        read_run(tmp_path)
    (tmp_path / "samples.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no samples"):
        read_run(tmp_path)


def test_damaged_runs_are_named_with_what_they_lack(tmp_path: Path, write_codebleu_run: WriteRun) -> None:
    run = write_codebleu_run(tmp_path, "base", "base", {"cpp": {"test": [0.5]}})
    for name in ("run.json", "samples.jsonl"):
        whole = (run / name).read_bytes()
        for damaged, message in ((b"", "is not JSON|holds no samples"), (b"{", "is not JSON"), (b"[]", "list"), (b"\xff", "is not JSON")):
            (run / name).write_bytes(damaged)
            with pytest.raises(ValueError, match=rf"{name}.*({message})") as caught:
                read_run(run)
            assert "\n" not in str(caught.value)
        for key in ("role", "figures") if name == "run.json" else ("lang", "kind"):
            value = json.loads(whole)
            del value[key]
            (run / name).write_text(json.dumps(value))
            with pytest.raises(ValueError, match=rf"{name}.* lacks {key}"):
                read_run(run)
        (run / name).write_bytes(whole)
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "figures": {"java": {}}}))
    with pytest.raises(ValueError, match=r"the figures of .*run\.json lacks? cpp"):
        read_run(run)
    (run / "run.json").write_text(json.dumps({**facts, "role": "judge"}))
    with pytest.raises(ValueError, match=r"run\.json has the role 'judge'; known: base, expert, mixture"):
        read_run(run)


def test_training_logs(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"it has no log\.jsonl"):
        read_training(tmp_path)
    (tmp_path / "log.jsonl").write_text('{"step": 9, "train_runtime": 3.0}\n')
    with pytest.raises(ValueError, match="holds no entry with a loss"):
        read_training(tmp_path)
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 9, "train_runtime": 3.0}\n')
    assert read_training(tmp_path) == (tmp_path.name, [{"step": 1, "loss": 2.0}])
