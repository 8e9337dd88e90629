"""What the system refuses is one sentence of the command that asked for it: row 38's faults, names, numbers, a reader that has gone."""

import errno
import importlib
import json
import os
import resource
import signal
import sys

import pytest

from model.cli import make_parser, run_command
from tests.forked import in_child
from train.data.__main__ import main, parse

LONG = "a" * 300


def command(module: str, *flags: object) -> int:
    """The status of a command in this process."""
    made = importlib.import_module(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [module, *map(str, flags)])
        return run_command(made.main, made.parse()) if hasattr(made, "parse") else made.main()


@pytest.mark.parametrize("fault", [errno.EROFS, errno.EIO, errno.ELOOP, errno.EDQUOT])
def test_a_disk_that_refuses_is_one_sentence_that_names_the_path(tmp_path, monkeypatch, capsys, fault):
    def refuse(path, *_, **__):
        raise OSError(fault, os.strerror(fault), str(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    assert command("model.export", "--model", "nowhere", "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and os.strerror(fault) in said and str(tmp_path / ".out.writing") in said


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), Exception("I/O error: Read-only file system (os error 30)")])
def test_an_error_without_a_path_names_the_output(capsys, error):
    """As of a write or fsync, and of safetensors and tokenizers."""

    def fail(args):
        raise error

    parser = make_parser("model.test", "")
    parser.add_argument("--out")
    assert run_command(fail, parser, ["--out", "somewhere"]) == 2
    assert capsys.readouterr().err.endswith(": somewhere\n")


@pytest.mark.parametrize(
    ("module", "flags"),
    [
        ("model.export", ["--model", "nowhere", "--out", LONG]),
        ("model.check", [LONG]),
        ("model.generate", ["x", "--model", LONG, "--lang", "cpp"]),
        ("eval.codebleu", ["--samples", LONG, "--data", "corpus", "--lang", "cpp", "--limit", 1, "--out", "out"]),
        ("train.expert", ["--lang", LONG, "--data", "corpus"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_name_that_is_too_long_is_one_sentence(tmp_path, monkeypatch, capsys, module, flags):
    monkeypatch.chdir(tmp_path)
    assert command(module, *flags) == 2
    said = capsys.readouterr().err
    assert LONG[:80] in said and "Traceback" not in said and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "flags"),
    [
        *(
            ("model.generate", ["x", "--model", "m", "--lang", "cpp", "--temperature", value])
            for value in ("1e-300", "1e-45", "inf", "nan", -1)
        ),
        *(("model.plan", ["--config", "mistral-7b-x4", flag, 10**400]) for flag in ("--context", "--batch-size", "--rank")),
        *(
            ("train.expert", ["--lang", "cpp", flag, value])
            for flag, value in (
                ("--learning-rate", "1e38"),
                ("--neftune-alpha", "1e300"),
                ("--rank", 10**30),
                ("--alpha", 10**400),
                ("--weight-decay", "nan"),
                ("--weight-decay", "inf"),
                ("--seed", 10**30),
            )
        ),
        *(("train.gate", ["--model", "m", "--out", "o", flag, "nan"]) for flag in ("--balance", "--lora-learning-rate")),
        *(("train.align", ["--model", "m", "--data", "d", "--out", "o", flag, "inf"]) for flag in ("--beta", "--sft-weight")),
    ],
    ids=lambda value: "-".join(str(part)[:9] for part in value[-2:]) if isinstance(value, list) else value,
)
def test_a_number_that_means_nothing_is_refused_by_its_flag(capsys, module, flags):
    assert command(module, *flags) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and flags[-2] in said and len(said) < 300


def test_rows_that_the_disk_has_no_room_for_leave_no_file(tmp_path):
    """The file ended in half a row, and the next call refused it as an output that exists."""
    rows = [{"text": f"{n} times n, of all numbers", "code": f"int f(int n) {{\n    return n * {n};\n}}\n"} for n in range(90)]
    (tmp_path / "cpp.train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "out" / "rows.jsonl"
    out.parent.mkdir()

    def write() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        return run_command(main, parse(), [str(out), "--data", str(tmp_path), "--langs", "cpp", "--limit", "90"])

    assert in_child(write, tmp_path / "said") == 2
    assert f"python -m train.data: [Errno 27] File too large: {out}" in (tmp_path / "said").read_text().splitlines()
    assert not list(out.parent.iterdir())


@pytest.mark.parametrize("lines", [1, 100_000], ids=["at the end", "while it speaks"])
def test_a_reader_that_has_gone_ends_a_command_quietly(tmp_path, lines):
    """As `head -1` does; the pipe's buffer holds 64 KiB."""

    def speak(args):
        for _ in range(lines):
            print("a line")

    def run() -> int:
        reader, writer = os.pipe()
        os.dup2(writer, 1)
        os.close(reader)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        return run_command(speak, make_parser("model.test", ""), [])

    assert in_child(run, tmp_path / "said") == 128 + signal.SIGPIPE
    assert (tmp_path / "said").read_text() == ""
