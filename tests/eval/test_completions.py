"""Completions of tasks: their text, with tokenizers that drop a space, and their batches, which an interrupted run keeps."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from eval import completions
from eval.completions import generated
from eval.tasks import Task
from model.infill import encode_piece
from model.load import load_model

SETTINGS = {"model": "m", "adapter": None, "device": "cpu", "precision": "exact", "template": False, "max_new_tokens": 8, "top_p": 1.0}
PROGRAM = "def f(a):\n    return a\n"


def task(number: int = 0, **more: Any) -> Task:
    return Task(
        **{
            "task_id": f"t{number}",
            "lang": "python",
            "text": "f",
            "prompt": "def f(a):\n",
            "entry": "f",
            "trusted": "",
            "tests": "",
            **more,
        }
    )


def arguments(**more: Any) -> Namespace:
    return Namespace(**{**SETTINGS, "temperature": 0.0, "seed": 0, "batch_size": 2, **more})


@pytest.mark.parametrize("whole", [False, True])
def test_no_indent_is_one_space_short(
    whole: bool, metaspace: Any, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What continues a prompt stands behind it; a whole program is a text of its own, as it is tokenised in training."""
    text = PROGRAM if whole else "    if a:\n        return a\n    return 1\n"
    ids = metaspace(text, add_special_tokens=False)["input_ids"] if whole else encode_piece(metaspace, text)
    monkeypatch.setattr(completions, "load_model", lambda *_, **__: (load_model(base_folder)[0], metaspace))
    monkeypatch.setattr(completions, "complete_ids", lambda *_, **__: [[*ids, metaspace.eos_token_id]])
    samples, cost = generated(arguments(), [task(whole=whole, prompt="" if whole else "def f(a):\n")], 1, tmp_path)
    assert [sample["completion"] for sample in samples] == [text]
    assert cost["generated_tokens"] == len(ids) + 1


def test_an_interrupted_run_goes_on_with_its_batches(base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends with the completions of one that was not."""
    tasks = [task(number) for number in range(5)]
    flags = arguments(model=str(base_folder), temperature=1.0)
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    expected, cost = generated(flags, tasks, 1, tmp_path / "whole")
    complete_ids, asked = completions.complete_ids, []

    def second_fails(*found: Any, **settings: Any) -> Any:
        asked.append(len(found[2]))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return complete_ids(*found, **settings)

    monkeypatch.setattr(completions, "complete_ids", second_fails)
    with pytest.raises(KeyboardInterrupt):
        generated(flags, tasks, 1, tmp_path / "parts")
    log = tmp_path / "parts" / "completions.jsonl"
    assert [len(json.loads(line)["samples"]) for line in log.read_text().splitlines()] == [2]
    with log.open("a") as file:
        file.write('{"samples": [{"ta')  # the end of a process that was killed
    found, again = generated(flags, tasks, 1, tmp_path / "parts")
    assert asked == [2, 2, 2, 1], "the first batch is not written again"
    assert found == expected and len({row["completion"] for row in found}) > 1
    assert again["generated_tokens"] == cost["generated_tokens"]
    monkeypatch.setattr(completions, "load_model", None)
    assert generated(flags, tasks, 1, tmp_path / "parts")[0] == expected
