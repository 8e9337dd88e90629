"""`python -m train.data`: rows that compose's gate mode `data` reads."""

import json

from model.cli import run_command
from model.gate_data import read_gate_data
from model.gates import tokenize
from model.generation import encode_prompts
from model.prompt import format_prompt, set_format
from train.data.__main__ import main, parse
from train.documents import train_tokenizer

PROGRAM = "int twice{0}(int n) {{\n    int r = n * {0};\n    return r;\n}}\n"


def run(*arguments) -> int:
    return run_command(main, parse(), list(map(str, arguments)))


def test_rows_are_prompt_and_program_of_each_language(tmp_path, capsys):
    for split in ("train", "valid"):
        rows = [{"text": f"{split} {n} times n", "code": PROGRAM.format(n)} for n in range(2 if split == "valid" else 3, 9)]
        (tmp_path / f"cpp.{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "rows.jsonl"
    assert run(out, "--data", tmp_path, "--langs", "cpp", "--limit", 3) == 0
    (own,) = read_gate_data(out, ["cpp"], 8)
    texts = [*own.fitted, *own.held]
    assert len(texts) == 3 and all(text.startswith("### C++\ntrain ") and "\n### Code\nint twice" in text for text in texts)
    assert run(out, "--data", tmp_path, "--langs", "cpp") == 2
    assert "rows.jsonl exists" in capsys.readouterr().err


def test_rows_can_be_in_the_prompt_of_an_expert(tmp_path):
    """Of one that was trained on instructions: compose reads the very tokens of its training, with one BOS."""
    tokenizer = train_tokenizer([PROGRAM.format(7)])
    set_format(tokenizer, "instruct")
    tokenizer.save_pretrained(tmp_path / "expert")
    row = {"text": "3 times n", "code": PROGRAM.format(3)}
    (tmp_path / "cpp.train.jsonl").write_text(json.dumps(row))
    out = tmp_path / "rows.jsonl"
    assert run(out, "--data", tmp_path, "--langs", "cpp", "--prompt-of", tmp_path / "expert") == 0
    (text,) = (json.loads(line)["text"] for line in out.read_text().splitlines())
    prompt = encode_prompts(tokenizer, [format_prompt(row["text"], "cpp", tokenizer)])[0]
    assert text.startswith("### Instruction\nWrite this in C++: 3 times n") and text.endswith(row["code"])
    assert tokenize(tokenizer, (text,))["input_ids"][0, : len(prompt)].tolist() == prompt


def test_a_language_without_rows_is_named_and_nothing_is_written(tmp_path, capsys):
    assert run(tmp_path / "rows.jsonl", "--data", tmp_path, "--langs", "cobol") == 2
    assert "no train split of programs in cobol" in capsys.readouterr().err and not list(tmp_path.iterdir())
