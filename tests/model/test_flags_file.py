"""`--config FILE`: the same flags as typed, and every mistake named."""

import argparse
import json

import pytest
import yaml

from model.cli import make_parser, run_command
from model.flags_file import add_config_flags


@pytest.fixture
def parse(tmp_path):
    """Runs a command with these flags on a YAML text, or another value as run.json; returns its status and namespace."""

    def run(config, *argv, name="flags.yml"):
        parser = make_parser("some.command", "")
        add_config_flags(parser)
        parser.add_argument("--lang", required=True)
        parser.add_argument("--learning-rate", type=float, default=0.1)
        parser.add_argument("--max-steps", type=int, default=0)
        parser.add_argument("--limit", type=int)
        parser.add_argument("--checkpointing", choices=("auto", "on", "off"), default="auto")
        parser.add_argument("--dora", action=argparse.BooleanOptionalAction, default=False)
        parser.add_argument("--plan", action="store_true")
        parser.add_argument("--prompts", nargs="+")
        file = tmp_path / name
        file.write_text(config)
        seen = []
        return run_command(seen.append, parser, ["--config", str(file), *argv]), (vars(seen[0]) if seen else None)

    return run


def test_values_are_those_of_typed_flags_and_the_command_line_wins(parse):
    config = "lang: cpp\nlearning-rate: 2e-4\nmax_steps: 7\nlimit: null\ncheckpointing: on\ndora: true\nprompts: [a, b c]\n"
    status, args = parse(config, "--max-steps", "9", "--no-dora")
    expected = {"lang": "cpp", "learning_rate": 2e-4, "max_steps": 9, "limit": None, "checkpointing": "on", "dora": False}
    assert status == 0 and args == {**expected, "plan": False, "prompts": ["a", "b c"], "seed": 0}
    assert parse("lang: cpp\nplan: true\nseed: 3\n")[1]["plan"] is True


def test_an_abbreviated_flag_is_refused(parse, capsys):
    """`--conf FILE` was taken, and the file not read."""
    with pytest.raises(SystemExit) as left:
        parse("lang: cpp\n", "--conf", "other.yml")
    assert left.value.code == 2 and "unrecognized arguments: --conf other.yml" in capsys.readouterr().err


def test_help_says_a_default_once_and_only_where_there_is_one(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
    parser = make_parser("some.command", "")
    parser.add_argument("--out", help="folder (default: runs/expert-{lang})")
    parser.add_argument("--limit", type=int, help="rows")
    parser.add_argument("--rank", type=int, default=16, help="of the factors")
    said = [line.split(maxsplit=2)[2] for line in parser.format_help().splitlines() if line.startswith("  --")]
    assert said == ["of every random draw (default: 0)", "folder (default: runs/expert-{lang})", "rows", "of the factors (default: 16)"]


def test_a_mistake_shows_its_traceback_where_asked_for(monkeypatch, capsys):
    def command(args):
        raise ValueError("the value is wrong")

    said = {}
    for wanted in ("0", "1"):
        monkeypatch.setenv("MOE_TRACEBACK", wanted)
        assert run_command(command, make_parser("some.command", ""), []) == 2
        said[wanted] = capsys.readouterr().err
    assert said["0"] == "python -m some.command: the value is wrong\n"
    assert "in command\n" in said["1"] and said["1"].endswith("\n" + said["0"])


def test_a_run_json_is_its_settings(parse):
    record = {"command": ["x"], "settings": {"lang": "java", "learning_rate": 1e-12, "limit": None, "dora": True}, "figures": {}}
    status, args = parse(json.dumps(record), name="run.json")
    assert status == 0 and (args["lang"], args["learning_rate"], args["dora"]) == ("java", 1e-12, True)


def test_what_is_printed_is_what_would_run(parse, capsys):
    flags = ["--checkpointing", "off", "--dora", "--prompts", "x: y", "-"]
    assert parse("lang: cpp\nlearning-rate: 1e-12\n", *flags, "--print-config") == (0, None)
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["checkpointing"] == "off"
    assert parse(printed)[1] == parse("lang: cpp\nlearning-rate: 1e-12\n", *flags)[1]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("lang: cpp\nmax-step: 3\n", "unknown key 'max-step'; did you mean 'max-steps'?"),
        ("lang: cpp\nzzz: 3\n", "unknown key 'zzz'; allowed: seed, lang, learning-rate, max-steps, limit"),
        ("lang: cpp\nplan: 1\n", "flags.yml: plan must be true or false, not 1"),
        ("lang: cpp\nlimit: [1, 2]\n", "flags.yml: limit must be one text or number, not [1, 2]"),
        ("lang: cpp\nlimit: true\n", "limit must be one text or number, not True"),
        ("- lang\n", "must be a mapping"),
        ("# lang: cpp\n", "flags.yml is empty; it must be a mapping with the keys seed, lang"),
        ("lang: [\n", "is not YAML"),
    ],
)
def test_a_mistake_is_named(parse, capsys, config, said):
    assert parse(config) == (2, None)
    error = capsys.readouterr().err
    assert error.startswith("python -m some.command: ") and said in error


def test_values_are_checked_as_typed_ones_are(parse, capsys):
    for config in ("lang: cpp\nmax-steps: x\n", "max-steps: 1\n"):
        with pytest.raises(SystemExit) as error:
            parse(config)
        assert error.value.code == 2
    said = capsys.readouterr().err
    assert "argument --max-steps: invalid int value: 'x'" in said and "the following arguments are required: --lang" in said


def test_a_missing_file_is_named(capsys):
    parser = make_parser("some.command", "")
    add_config_flags(parser)
    assert run_command(print, parser, ["--config", "nowhere.yml"]) == 2
    assert "nowhere.yml is missing" in capsys.readouterr().err
