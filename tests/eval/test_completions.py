"""Completions of tasks: their text and where it ends, and their batches, which an interrupted run keeps."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from eval import completions
from eval.completions import generated, given
from eval.tasks import CORPUS, Task, load_tasks
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
    first, *_, last = log.read_text().splitlines()
    log.write_text(f"{first}\n{{}}\n{last}\n")  # a batch is known by its place: none behind a lost one may be kept
    assert generated(flags, tasks, 1, tmp_path / "parts")[0] == expected
    log.write_text("\n".join(log.read_text().splitlines()[1:]) + "\n")  # nor may one take the place of one that is gone
    assert generated(flags, tasks, 1, tmp_path / "parts")[0] == expected
    monkeypatch.setattr(completions, "load_model", None)
    assert generated(flags, tasks, 1, tmp_path / "parts")[0] == expected


FENCED = {
    "closed": ("Here it is:\n\n```python\n" + PROGRAM + "```\n\nIt returns `a`:\n```\nf(1)\n```\n", PROGRAM),
    "cut off": ("```\n" + PROGRAM, PROGRAM),
    "cut off behind a sentence": ("Here:\n```python\n" + PROGRAM, PROGRAM),
    "closed alone": (PROGRAM + "```\n\nIt returns `a`.\n", PROGRAM),
    "closed alone at the end": (PROGRAM + "```", PROGRAM),
    "closed alone, then an example": (PROGRAM + "```\nUse it:\n```python\nf(1)\n```\n", PROGRAM),
    "closed alone, then an example cut off": (PROGRAM + "```\nUse it:\n```python\nf(1", PROGRAM),
    "behind a command": ("First:\n```bash\npip install x\n```\nthen\n```Python\n" + PROGRAM + "```\n", PROGRAM),
    "behind a command, without a tag": ("```bash\npip install a-package-of-a-long-name\n```\n```\n" + PROGRAM + "```\n", PROGRAM),
    "with a tag of its own": ("```text\n1\n```\n```python3 title=f.py\n" + PROGRAM + "```\n", PROGRAM),
    "with a tag, behind one without": ("```\n1 2\n```\n```py\n" + PROGRAM + "```\n", PROGRAM),
    "none": (PROGRAM, PROGRAM),
    "in a line": ("x = '```'\n" + PROGRAM, "x = '```'\n" + PROGRAM),
}


@pytest.mark.parametrize("case", FENCED)
def test_a_whole_program_is_taken_out_of_its_fence(
    case: str, tokenizer: Any, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is cut: what a stop text would cut may stand before the fence. It is recorded."""
    answer, expected = FENCED[case]
    before = "Written as asked\n### Python\n" if case == "closed" else ""
    tasks, samples = [task(whole=True, prompt="", stop=("\n### Python\n",))], tmp_path / "samples.jsonl"
    samples.write_text(json.dumps({"task_id": "t0", "completion": answer}) + "\n")
    ids = tokenizer(before + answer, add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(completions, "complete_ids", lambda *_, **__: [ids])
    for row in (*given(samples, tasks), *generated(arguments(model=str(base_folder)), tasks, 1, tmp_path)[0]):
        assert (row["completion"], row["fenced"]) == (expected, answer != expected)
    assert given(samples, [task()])[0]["completion"] == answer, "what continues a prompt has no fence"


def test_a_completion_ends_at_the_tasks_stop_text(base_folder: Path, tmp_path: Path) -> None:
    (free,), cost = generated(arguments(model=str(base_folder)), [task()], 1, _made(tmp_path / "free"))
    mark = free["completion"][1:3]
    (row,), less = generated(arguments(model=str(base_folder)), [task(stop=(mark,))], 1, _made(tmp_path / "cut"))
    assert row["completion"] == free["completion"].partition(mark)[0]
    assert less["generated_tokens"] < cost["generated_tokens"]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


GOES_ON = {  # behind a right program, up to the last token: what a base writes
    "humaneval_x.java.jsonl.gz": "\n\nclass Main {\n    public static",
    "mbxp_sample.java.jsonl": "\n// Example\nimport",
    "transcoder_gfg.python.jsonl.gz": "\n\ndef f_gold ( arr ,",
    "transcoder_gfg.java.jsonl.gz": "\nclass NEXT {\n  static int f (",
    "transcoder_gfg.cpp.jsonl.gz": "\n\nint main ( ) {\n  cout <<",
    "exercism.python.jsonl.gz": "\n### Python\nReverse a",
    "exercism.javascript.jsonl.gz": "\n### C++\nReverse a",
    "exercism.java.jsonl.gz": "\n### Java\nReverse a",
    "exercism.cpp.jsonl.gz": "\n### JavaScript\nReverse a",
    **{f"{CORPUS}.{lang}": "\n### Code\ndef" for lang in ("python", "javascript", "java", "cpp")},
}


@pytest.mark.parametrize("name", GOES_ON)
def test_stop_texts_leave_the_references_whole_and_cut_what_follows(name: str, request: pytest.FixtureRequest) -> None:
    lang = name.split(".")[1]
    source = CORPUS if name.startswith(CORPUS) else str(request.getfixturevalue("shared_data") / "eval" / name)
    for task in load_tasks(source, lang):
        if task.reference is None:  # as some of MBXP
            continue
        assert task.cut(task.reference) == task.reference, task.task_id
        assert task.cut(task.reference + GOES_ON[name]).rstrip("\n") == task.reference.rstrip("\n"), task.task_id


@pytest.mark.parametrize(
    ("lang", "gold", "report"),
    [
        ("python", "def f_gold ( a ) :\n    return a", 'print("#Results: %i" % n_success)'),
        ("cpp", "int f_gold ( int a ) {\n  return a;\n}", 'cout << "#Results:" << " " << n_success << ", " << param0.size();'),
        ("java", "static int f_gold ( int a ) {\n  return a;\n}", 'System.out.println("#Results:" + n_success + ", " + param0.size());'),
    ],
)
def test_transcoders_prompt_says_what_to_write(lang: str, gold: str, report: str, tmp_path: Path) -> None:
    """In a comment of one line, just above the function."""
    mark, opened, closed = ("#", "", "") if lang == "python" else ("//", "class A {\n" * (lang == "java"), "}" * (lang == "java"))
    script = f"{mark} A licence\n{opened}{gold}\n{mark}TOFILL\n{report}\n{closed}"
    row = {"id": "A", "f_gold": gold, "script": script, "text": "Give it\nback"}
    (tmp_path / "tasks.jsonl").write_text(json.dumps(row) + "\n")
    (read,) = load_tasks(str(tmp_path / "tasks.jsonl"), lang)
    head = gold.partition("\n")[0].replace("f_gold", "f_filled")
    assert read.prompt.rstrip("\n") == f"{mark} A licence\n{opened}{mark} Give it back\n{head}"
