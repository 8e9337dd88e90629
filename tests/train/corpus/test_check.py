"""Every family in every language, run against its cases; and the checker itself."""

import pytest

from model.languages import LANGUAGES
from train.corpus import check
from train.corpus.definition import load_families
from train.corpus.variants import Programs, variants


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_family_passes_its_cases(lang: str) -> None:
    families = load_families()
    outcome = check.check_programs(Programs(families), [variants(row)[0] for row in families.values()], lang)
    if outcome.missing:
        pytest.skip(f"no {outcome.missing}")
    assert not outcome.failed, str(outcome)
    assert len(outcome.passed) == len(families) >= 150


def test_families_follow_the_definition_language() -> None:
    broken = {row.name: check.broken_rules(row) for row in load_families().values()}
    assert not {name: rules for name, rules in broken.items() if rules}


SIGN = {  # right for positive numbers only
    "python": "def sign(n):\n    return 1\n",
    "java": "class Solution {\n    public static int sign(int n) {\n        return 1;\n    }\n}\n",
    "javascript": "function sign(n) {\n    return 1;\n}\n",
    "cpp": "int sign(int n) {\n    return 1;\n}\n",
}
DRIVERS = {
    "python": "if sign({0}) != {1}:\n    raise AssertionError('got 1')\n",
    "java": "class Main {{ public static void main(String[] a) {{ if (Solution.sign({0}) != {1}) throw new AssertionError(); }} }}",
    "javascript": "if (sign({0}) !== {1}) throw new Error('got 1');",
    "cpp": "int main() {{ return sign({0}) != {1}; }}",
}


@pytest.mark.parametrize("lang", LANGUAGES)
def test_a_wrong_answer_and_a_broken_program_fail_alone(lang: str) -> None:
    if tool := check.missing_tool(lang):
        pytest.skip(f"no {tool}")
    right, wrong = (SIGN[lang], DRIVERS[lang].format(5, 1)), (SIGN[lang], DRIVERS[lang].format(-5, -1))
    outcome = check.Outcome(lang)
    check.run_batch(lang, {"a": right, "b": wrong, "c": ("this is ( no program", ""), "d": right}, outcome)
    assert sorted(outcome.passed) == ["a", "d"]
    assert sorted(outcome.failed) == ["b", "c"]


def test_a_missing_compiler_is_not_checked_and_never_passed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(check.shutil, "which", lambda tool: None)
    assert check.main(["--lang", "java"]) == 0
    assert capsys.readouterr().out == "java: not checked: no javac\n"


def test_a_wrong_case_fails_with_what_was_got(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    family = next(row for row in load_families().values() if isinstance(row.cases[0][1], int))
    wrong = ((*family.cases[0][:1], 12345),)
    monkeypatch.setattr(Programs, "_cases", lambda self, variant: wrong)
    assert check.main(["--lang", "python", "--family", family.name]) == 1
    assert "expected 12345" in capsys.readouterr().out


def test_an_unknown_family_is_a_users_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["--family", "nothing"]) == 2
    assert "no family is called nothing" in capsys.readouterr().err
