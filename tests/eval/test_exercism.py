"""Exercism's tests: all of them run, on objects that stay in the program's process; none can be forged."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eval.judge import Judge
from eval.sandbox import Limits, Sandbox
from eval.tasks import Task, load_tasks

WRONG = ("failed", "timeout", "memory", "compile error")

JAVASCRIPT = {
    "stub": {"counter.js": "export class Counter {}\n"},
    "solution": {
        "proof.ci.js": "export class Empty extends Error {}\nexport const twice = (f, x) => f(f(x));\n"
        "export class Counter {\n  constructor(n) { this.n = n; }\n  add(other) { return new Counter(this.n + other.n); }\n"
        "  get double() { return 2 * this.n; }\n  list() { return [this.n, { n: this.n }]; }\n"
        "  self() { return this; }\n  take() { if (!this.n) throw new Empty('nothing left'); this.n -= 1; }\n}\n"
    },
    "tests": {
        "counter.spec.js": "import { describe, expect, test, xtest } from '@jest/globals';\n"
        "import { Counter, Empty, twice } from './counter';\n"
        "describe('counter', () => {\n  let counter;\n  beforeEach(() => { counter = new Counter(1); });\n"
        "  test('first', () => { expect(counter.n).toBe(1); });\n"
        "  xtest('adds', () => { expect(counter.add(new Counter(2))).toEqual({ n: 3 }); expect(counter.double).toEqual(2); });\n"
        "  xtest('is itself', () => { expect(counter.self()).toBe(counter); expect(counter).not.toBe(new Counter(1)); });\n"
        "  xtest('lists', () => { expect(counter.list()).toEqual([1, { n: 1 }]); expect(counter).not.toEqual({ n: 2 }); });\n"
        "  xtest('ends', () => { counter.take(); expect(() => counter.take()).toThrow(Empty);\n"
        "    expect(() => counter.take()).toThrow('nothing left'); expect(() => counter.take()).toThrow(new Error('nothing left')); });\n"
        "  xtest('calls', () => { expect(twice((x) => x + 5, 1)).toBe(11); expect(counter instanceof Counter).toBe(true); });\n"
        "  test.skip('never', () => { expect(1).toBe(2); });\n});\n"
    },
}
JAVA = {
    "stub": {"Counter.java": "class Counter {}\n"},
    "solution": {
        "Empty.java": "public class Empty extends Exception { public Empty(String text) { super(text); } }\n",
        "Size.java": "enum Size { SMALL, LARGE }\n",
        "Counter.java": "import java.util.*;\n\npublic class Counter {\n"
        "    private int n;\n    int first, last;\n    public Counter(int n) { this.n = n; }\n"
        "    public Counter add(Counter other) { return new Counter(n + other.n); }\n"
        "    public Size size() { return n < 10 ? Size.SMALL : Size.LARGE; }\n"
        "    static List<String> names(int n) { return null; }\n"
        "    public int[] sorted(int[] values) { Arrays.sort(values); return values; }\n"
        '    void take() throws Empty { if (n == 0) throw new Empty("nothing left"); n--; }\n'
        "    Counter self() { return this; }\n}\n",
    },
    "tests": {
        "CounterTest.java": "import org.junit.jupiter.api.BeforeEach;\n"
        "import org.junit.jupiter.api.Disabled;\nimport org.junit.jupiter.api.Test;\n"
        "import static org.assertj.core.api.Assertions.assertThat;\n"
        "import static org.assertj.core.api.Assertions.assertThatExceptionOfType;\n\n"
        "public class CounterTest {\n    private Counter counter;\n    @BeforeEach public void setUp() { counter = new Counter(0); }\n"
        "    @Test public void first() { assertThat(counter.size()).isEqualTo(Size.SMALL); }\n"
        '    @Disabled("Remove to run test") @Test public void adds() {\n'
        "        assertThat(counter.add(new Counter(12)).size()).isEqualTo(Size.LARGE);\n"
        "        assertThat(counter.self()).isEqualTo(counter).hasSameHashCodeAs(counter);\n"
        "        int[] values = {3, 1};\n        counter.sorted(values);\n        assertThat(values).containsExactly(1, 3);\n    }\n"
        '    @Disabled("Remove to run test") @Test public void lists() { assertThat(Counter.names(1)).isNull(); }\n'
        '    @Disabled("Remove to run test") @Test public void ends() {\n'
        '        assertThatExceptionOfType(Empty.class).isThrownBy(() -> counter.take()).withMessage("nothing left");\n    }\n}\n'
    },
}
CPP = {
    "stub": {"halves.h": "#pragma once\n", "halves.cpp": '#include "halves.h"\n'},
    "solution": {
        "example.h": "#pragma once\n#include <string>\n#include <vector>\n\nnamespace halves {\nint half(int n);\n"
        "std::vector<std::string> parts(const std::string&, std::size_t at = 1);\n}  // namespace halves\n",
        "example.cpp": '#include "halves.h"\n#include <stdexcept>\n\nnamespace halves {\n'
        'int half(int n) {\n    if (n % 2) throw std::domain_error("odd");\n    return n / 2;\n}\n'
        "std::vector<std::string> parts(const std::string& text, std::size_t at) { return {text.substr(0, at), text.substr(at)}; }\n}\n",
    },
    "tests": {
        "halves_test.cpp": '#include "halves.h"\n'
        '#ifdef EXERCISM_TEST_SUITE\n#include <catch2/catch.hpp>\n#else\n#include "test/catch.hpp"\n#endif\n'
        'TEST_CASE("first", "[a]") { REQUIRE(halves::half(4) == 2); }\n#if defined(EXERCISM_RUN_ALL_TESTS)\n'
        'TEST_CASE("odd") { REQUIRE_THROWS_AS(halves::half(3), std::domain_error); }\n'
        'TEST_CASE("parts") { REQUIRE(halves::parts("abc") == std::vector<std::string>{"a", "bc"}); }\n#endif\n'
    },
}
PYTHON = {
    "stub": {"counter.py": "class Counter:\n    pass\n"},
    "solution": {
        "example.py": """from datetime import date
from enum import IntEnum

class Empty(ValueError):
    def __init__(self, text):
        self.text = text

class Counter:
    def __init__(self, n=0):
        self.n = n
    def add(self, other):
        return Counter(self.n + other.n)
    def __iter__(self):
        return iter(range(self.n))
    def __len__(self):
        return self.n
    def __str__(self):
        return 'n' * self.n
    def take(self):
        if not self.n:
            raise Empty('nothing left')
        self.n -= 1
    def other(self):
        return [self, {'n': self.n}]

def twice(f, x):
    return f(f(x))

def same(f, g):
    return f is g

def sort(values):
    values.sort()

class Colour(IntEnum):
    RED = 3

class Names(list):
    def first(self):
        return self[0]

def next_year(day):
    return date(day.year + 1, day.month, day.day)
"""
    },
    "tests": {
        "counter_test.py": """import unittest
from datetime import date

import counter
from counter import (
    Counter,
    Empty as Nothing,
)

class CounterTest(unittest.TestCase):
    def setUp(self):
        self.counter = Counter(n=1)

    def test_first(self):
        self.assertEqual(self.counter.n, 1)

    def test_adds(self):
        sum_of = self.counter.add(Counter(2))
        self.assertEqual((sum_of.n, len(sum_of), list(sum_of), str(sum_of)), (3, 3, [0, 1, 2], 'nnn'))

    def test_lists(self):
        found = self.counter.other()
        self.assertIs(found[0], self.counter)
        self.assertEqual(found[1], {'n': 1})
        self.assertNotEqual(Counter(1), Counter(1))

    def test_ends(self):
        self.counter.take()
        with self.assertRaises(Nothing) as err:
            self.counter.take()
        self.assertEqual(err.exception.args[0], 'nothing left')
        self.assertEqual(type(err.exception), Nothing)
        with self.assertRaises(ValueError):
            self.counter.take()

    def test_changes(self):
        self.counter.n = 5
        self.assertEqual([x for x in self.counter], [0, 1, 2, 3, 4])
        values = [3, 1]
        counter.sort(values)
        self.assertEqual(values, [1, 3])

    def test_calls(self):
        f = lambda x: x + 5
        self.assertEqual(counter.twice(f, 1), 11)
        self.assertTrue(all(map(counter.same, [f], [f])))

    def test_own_classes_of_plain_data(self):
        self.assertEqual(counter.Colour.RED, 3)
        names = counter.Names(['a', 'b'])
        self.assertEqual((names.first(), list(names)), ('a', ['a', 'b']))
        self.assertNotEqual(names, ['a', 'b'])

    def test_dates(self):
        self.assertEqual(counter.next_year(date(2000, 5, 6)), date(2001, 5, 6))

if __name__ == '__main__':
    unittest.main()
"""
    },
}
ROWS = {"python": PYTHON, "javascript": JAVASCRIPT, "java": JAVA, "cpp": CPP}
_SEND = """
import json, os
def send(value):
    text = json.dumps(value).encode()
    os.write(4, len(text).to_bytes(8, 'little') + text)
"""
_JAVA_RIGHT = "import java.util.*;\n" + "".join(text.replace("import java.util.*;\n", "") for text in JAVA["solution"].values())
_EQUAL = "public boolean equals(Object o) { return true; } public int hashCode() { return 1; }\n    "
_TAKEOVER = """
class Takeover extends AnswerLoop implements Wire.References {
    static Counter last;
    final Server server = new Server();
    public int number(Object value) { last = (Counter) value; return 0; }
    public Object object(int number, String[] types) { return last; }
    Object[] answer(Object[] message) throws ReflectiveOperationException { return server.answer(message); }
    Object[] threw(Throwable error) { return server.threw(error); }
    static void start(Counter first) {
        Takeover loop = new Takeover();
        Wire wire = new Wire(loop);
        try {
            wire.send(new Object[] {"ok", first, new Object[] {0}});
            loop.run(wire);
        } catch (java.io.IOException error) { }
    }
}
"""  # answers in the harness's place, and gives all objects one number
_RIGHT = PYTHON["solution"]["example.py"] + _SEND  # but for what an attack adds
ATTACKS = {
    "python": {
        "right for the first test alone": "class Counter:\n    def __init__(self, n): self.n = n\nEmpty = ValueError\n",
        "exits with 0": "import os; os._exit(0)",
        "exits when it is asked": _RIGHT + "import sys\ndel twice\nsys.modules['program'].__getattr__ = lambda name: os._exit(0)\n",
        "is a number equal to everything": _RIGHT + "class Any(int):\n    def __eq__(self, other): return True\n"
        "    def __hash__(self): return 1\ndef twice(f, x): return Any(7)\n",
        "is a date equal to everything": _RIGHT + "class Any(date):\n    def __eq__(self, other): return True\n"
        "def next_year(day): return Any(1, 1, 1)\n",
        "is an object equal to everything": _RIGHT
        + "Counter.__eq__ = lambda *_: True\nCounter.other = lambda self: [Counter(1), {'n': 1}]\n",
        "skips": _RIGHT + "import unittest\ndef twice(f, x): raise unittest.SkipTest('no')\n",
        "skips by a name": _RIGHT + "class SkipTest(Exception): pass\nSkipTest.__module__ = 'builtins'\ndef twice(f, x): raise SkipTest\n",
        "raises what ends a process": _RIGHT + "def twice(f, x): raise SystemExit(0)\n",
        "raises what ends a run": _RIGHT + "def twice(f, x): raise KeyboardInterrupt\n",
        "raises what ends a loop": _RIGHT + "def same(f, g): raise StopIteration\n",  # all() of nothing is true
        "is every error": _RIGHT + "Empty = Exception\ndef take(self): raise Empty('nothing left')\nCounter.take = take\n",
        "answers before it is asked": _RIGHT + "for i in range(50): send({'ok': [[1, []]]})\n",
        "calls what it was not given": _RIGHT + "def twice(f, x): send({'call': 9, 'arguments': []}); return 12\n",
        "calls a function by name": _RIGHT + "def twice(f, x): send({'call': 'os._exit', 'arguments': [0]}); return 12\n",
        "makes a function of the tests' own": _RIGHT + "def twice(f, x): f.__globals__['finish'] = print; return 12\n",
        "refers to a function of the tests": _RIGHT + "def twice(f, x): send({'ok': [{'reference': {'yours': 0}}, []]})\n",
        "has a bomb of classes": _SEND + "e = None\nfor i in range(900): e = {'mine': i, 'error': ['E', e]}\nsend({'error': [e, []]})\n",
        "refers to nothing": _SEND + "send({'ok': {'reference': {'mine': 'x'}}})\n",
    },
    "javascript": {
        "right for the first test alone": "export class Empty {}\nexport const twice = 0;\n"
        "export class Counter { constructor(n) { this.n = n; } }",
        "exits with 0": "process.exit(0);",
        "makes a function of the tests' own": "export class Empty extends Error {}\nexport const twice = (f) =>\n"
        "f.constructor('return process')().reallyExit(0);\n",
        "calls what is no callback": "const fs = await import('fs'); const v8 = await import('v8');\n"
        "const body = v8.serialize({ call: 'constructor', args: [['value', 'process.reallyExit(0)']] });\n"
        "const head = Buffer.alloc(8);\n"
        "head.writeBigUInt64LE(BigInt(body.length)); fs.writeSync(4, Buffer.concat([head, body]));\n",
        "is equal to everything": "export class Counter { get n() { return new Proxy({}, { get: () => () => true }); } }\n",
    },
    "java": {
        "right for the first test alone": "class Empty extends Exception {} enum Size { SMALL }\n"
        "class Counter { Counter(int n) {} Size size() { return Size.SMALL; } }",
        "exits with 0": "class Counter { static { Runtime.getRuntime().halt(0); } }",
        "is equal to everything": _JAVA_RIGHT.replace("return this;", "return new Counter(n);").replace(
            "int first,", _EQUAL + "int first,"
        ),
        "is one object": _JAVA_RIGHT.replace("this.n = n;", "this.n = n; if (Takeover.last == null) Takeover.start(this);") + _TAKEOVER,
    },
    "cpp": {
        "right for the first test alone": "namespace halves { int half(int n) { return n / 2; }\n"
        "std::vector<std::string> parts(std::string s, int = 1) { return {s}; } }",
        "exits with 0": "namespace halves { int half(int) { _Exit(0); } std::vector<std::string> parts(std::string, int) { return {}; } }",
        "throws at everything": 'namespace halves { int half(int) { throw std::domain_error(""); }\n'
        "std::vector<std::string> parts(std::string, int) { return {}; } }",
    },
}


@pytest.fixture(scope="module")
def judge(sandbox: Sandbox) -> Iterator[Judge]:
    with Judge(sandbox, Limits(wall_s=60)) as judge:
        yield judge


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., list[Task]]:
    def read(lang: str, *rows: dict[str, Any]) -> list[Task]:
        path = tmp_path / "tasks.jsonl"
        path.write_text("".join(json.dumps({"id": str(number), "text": "Count.", **row}) + "\n" for number, row in enumerate(rows)))
        return load_tasks(str(path), lang)

    return read


def outcome(judge: Judge, task: Task, program: str) -> tuple[str, str]:
    verdict = judge.judge(task, program)
    if verdict.outcome == "tool missing":
        pytest.skip(verdict.detail)
    return verdict.outcome, verdict.detail


@pytest.mark.parametrize("lang", ROWS)
def test_the_reference_passes_and_no_other_does(lang: str, judge: Judge, read: Callable[..., list[Task]]) -> None:
    (task,) = read(lang, ROWS[lang])
    assert task.reference is not None
    assert outcome(judge, task, task.reference) == ("passed", "")
    for name, program in ATTACKS[lang].items():
        found, detail = outcome(judge, task, program)
        assert found in WRONG, f"{name}: {found}, {detail}"


def test_python_is_asked_for_by_its_stub_and_fails_without_a_name_that_the_tests_import(
    judge: Judge, read: Callable[..., list[Task]]
) -> None:
    (task,) = read("python", PYTHON)
    assert task.text == "Count.\nclass Counter:\n    pass\n"
    assert outcome(judge, task, PYTHON["solution"]["example.py"].replace("Empty", "Missing"))[0] == "failed"


def test_cpp_shows_the_declarations_that_its_stub_lacks(read: Callable[..., list[Task]]) -> None:
    (task,) = read("cpp", CPP)
    assert "int half(int n);" in task.text
    assert "substr" not in task.text


@pytest.mark.parametrize(
    ("lang", "part", "file", "old", "new"),
    [
        ("python", "solution", "example.py", "def __len__(self)", "def __eq__(self, other)"),
        ("python", "stub", "counter.py", "class", "@dataclass\nclass"),
        ("python", "tests", "counter_test.py", "import unittest", "import unittest\nfrom unittest import mock"),
        ("javascript", "tests", "counter.spec.js", "() => { counter.take();", "async () => { await counter.take();"),
        ("java", "solution", "Counter.java", "int[] sorted(int[] values)", "int[] sorted(java.util.function.Supplier<int[]> values)"),
        ("javascript", "tests", "counter.spec.js", "toEqual({ n: 3 })", "toEqual(new Counter(3))"),
        ("java", "tests", "CounterTest.java", "counter.size()", "counter.last"),
        ("java", "solution", "Counter.java", "int first, last;", "public boolean equals(Object o) { return true; }"),
        ("cpp", "solution", "example.h", "int half(int n);", "class Half {};"),
    ],
)
def test_what_cannot_be_run_apart_is_left_out(
    lang: str, part: str, file: str, old: str, new: str, read: Callable[..., list[Task]], capsys: pytest.CaptureFixture[str]
) -> None:
    row = ROWS[lang]
    changed = {**row, part: {**row[part], file: row[part][file].replace(old, new)}}
    assert len(read(lang, row, changed)) == 1
    assert "1 of the 2 tasks can be judged" in capsys.readouterr().out
