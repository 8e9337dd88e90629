"""Readers of configuration files and of rows."""

import gzip
import json
import shutil
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path

import pyarrow
import pyarrow.parquet
import yaml

from eval.study_file import read_study
from eval.tasks import load_tasks
from model.cli import check_numbers, make_parser
from model.flags_file import with_config
from model.gate_data import find_gate_data, read_gate_data
from model.merging.config import read_merge_config
from model.recipe import read_recipe
from tests.faults.reader import Reader
from train.data.preferences import load_preferences
from train.data.reading import read_well_formed
from train.lora import add_lora_flags, check_lora_flags
from train.settings import add_training_flags, check_flags


def yaml_files(folder: Path) -> Iterator[Reader]:
    examples = Path(__file__).parents[2] / "examples"
    parser = make_parser("test", "")
    add_training_flags(parser, learning_rate=1e-4, batch_size=8, epochs=1, max_length=64)
    add_lora_flags(parser)

    def train(file: Path) -> None:
        try:
            with redirect_stderr(StringIO()) as printed:
                args = parser.parse_args(with_config(parser, ["--config", str(file)]))
            check_numbers(parser, args)
            check_flags(args)
            check_lora_flags(args)
        except (SystemExit, ValueError) as error:  # of a value that a flag does not take: the flag is named, wherever it came from
            message = printed.getvalue() or str(error)
            raise ValueError(message if "--" not in message else f"{file}: {message}") from error
        assert args.batch_size >= 1 and args.rank >= 1

    def compose(file: Path) -> None:
        recipe = read_recipe(file)
        assert 1 <= recipe.experts_per_token <= len(recipe.experts) and all(isinstance(e.source_model, str) for e in recipe.experts)

    def merge(file: Path) -> None:
        config = read_merge_config(file)
        assert config.models and all(isinstance(model, str) for model in config.models)

    def study(file: Path) -> None:
        read = read_study(file)
        assert read.limit >= 1 and read.baseline in [system.name for system in read.systems]

    files = folder / "yaml"
    files.mkdir()
    flags = {"epochs": 2, "learning-rate": 1e-3, "batch_size": 4, "target": "ffn", "rslora": True, "checkpointing": "on", "rank": 8}
    (files / "train.yml").write_text(yaml.safe_dump(flags))
    for name, read in (("four_languages.yml", compose), ("merge_ties.yml", merge), ("merge_slerp.yml", merge), ("study.yml", study)):
        shutil.copy(examples / name, files)
        yield Reader(f"{read.__name__}'s YAML, {name}", files / name, partial(read, files / name))
    yield Reader("train's YAML", files / "train.yml", lambda: train(files / "train.yml"))


def row_files(folder: Path) -> Iterator[Reader]:
    files = folder / "rows"
    files.mkdir()
    rows = [{"text": f"add {n} to é", "code": f"int f{n}(int a) {{ return a + {n}; }}", "lang": "cpp", "id": f"r{n}"} for n in range(6)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (files / "rows.jsonl").write_bytes(lines)
    (files / "rows.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
    (files / "rows.json").write_text(json.dumps(rows, indent=1))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), files / "rows.parquet")
    (files / "gate.jsonl").write_text("".join(json.dumps({"lang": "cpp", "text": row["code"]}) + "\n" for row in rows))
    pairs = [{"prompt": f"p{n}", "chosen": "a", "rejected": "b"} for n in range(4)]
    (files / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    judged = [
        {"task_id": f"t{n % 2}", "prompt": "p", "completion": f"c{n}", "outcome": "passed" if n < 2 else "failed", "lang": "cpp"}
        for n in range(4)
    ]
    (files / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in judged))
    task = {
        "prompt": "int f(int a) {\n",
        "canonical_solution": "return a; }\n",
        "declaration": "int f(int a) {\n",
        "test": "int main() {}\n",
    }
    (files / "tasks.jsonl").write_text("".join(json.dumps({"task_id": f"CPP/{n}", **task}) + "\n" for n in range(3)))

    def read(file: Path) -> None:
        found, bad = read_well_formed(file)
        assert bad >= 0 and found and all(isinstance(row[key], str) and row[key].strip() for row in found for key in ("text", "code"))

    def gate() -> None:
        for own in read_gate_data(find_gate_data("gate.jsonl", files), ["cpp"], 4):
            assert own.fitted and own.held and all(isinstance(text, str) for text in own.fitted)

    def preferences(file: Path) -> None:
        found, _ = load_preferences([file], 4, 0)
        assert found and all(isinstance(part, str) for pair in found for part in (pair.prompt, pair.chosen, pair.rejected))

    def tasks() -> None:
        with redirect_stdout(StringIO()):
            found = load_tasks(str(files / "tasks.jsonl"), "cpp")
        assert found and all(isinstance(text, str) for task in found for text in (task.task_id, task.prompt, task.tests, task.program("")))

    for name in ("rows.jsonl", "rows.jsonl.gz", "rows.json", "rows.parquet"):
        yield Reader(name, files / name, partial(read, files / name), 20)
    yield Reader("gate's rows", files / "gate.jsonl", gate)
    yield Reader("preferences", files / "pairs.jsonl", lambda: preferences(files / "pairs.jsonl"))
    yield Reader("judged samples", files / "samples.jsonl", lambda: preferences(files / "samples.jsonl"))
    yield Reader("tasks", files / "tasks.jsonl", tasks)
