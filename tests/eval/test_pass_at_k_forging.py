"""Wrong programs that try to be judged right, or not to be judged at all. None may pass, and none may leave the count."""

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from eval.judge import Judge
from eval.judge.languages import TOOLCHAINS
from eval.sandbox import Limits, Sandbox
from eval.tasks import Task

WRONG = ("failed", "timeout", "memory", "compile error")

TASKS = {
    "python": Task("p", "python", "", "def f(x):\n", "f", "", "assert f(1) == 2\nassert f(5) == 26\n"),
    "javascript": Task(
        "j",
        "javascript",
        "",
        "function f(x) {\n",
        "f",
        "",
        "console.assert(f(1) === 2);\nif (f(5) != 26) throw 'wrong';\n",
        reference="return x * x + 1; }",
    ),
    "java": Task(
        "v",
        "java",
        "",
        "import java.util.*;\nclass Solution {\n    public static Object f(int x) {\n",
        "",
        "import java.util.*;\nclass Solution {\n    public static Object f(int x) {\n",
        "class Main { public static void main(String[] a) { assert Solution.f(1).equals(2);"
        " if (!Solution.f(5).equals(26)) throw new Error(); } }",
        closing="}\n}\n",
    ),
    "cpp": Task(
        "c",
        "cpp",
        "",
        "#include <string>\nusing namespace std;\nint f(int x) {\n",
        "",
        "#include <string>\nusing namespace std;\nint f(int x) {\n",
        "#undef NDEBUG\n#include <cassert>\nint main() { assert(f(1) == 2); assert(f(5) == 26); }\n",
        closing="}\n",
    ),
}
RIGHT = {
    "python": "    return x * x + 1\n",
    "javascript": "    return x * x + 1;\n}\n",
    "java": "        return x * x + 1;\n    }\n}\n",
    "cpp": "    return x * x + 1;\n}\n",
}

_SAY = 'for fd in range(3, 10):\n        try: os.write(fd, b"{}")\n        except OSError: pass'
PYTHON = {
    "does nothing": "    pass\n",
    "exits with 0": "    import os; os._exit(0)\n",
    "exits when loaded": "    pass\nimport os; os._exit(0)\n",
    "raises SystemExit": "    raise SystemExit(0)\n",
    "is equal to everything": "    return type('A', (), {'__eq__': lambda *_: True, '__hash__': None})()\n",
    "is an int equal to everything": "    return type('A', (int,), {'__eq__': lambda *_: True, '__hash__': None})(7)\n",
    "is a list equal to everything": "    return type('A', (list,), {'__eq__': lambda *_: True, '__hash__': None})()\n",
    "patches builtins": "    import builtins; builtins.AssertionError = type('A', (Exception,), {}); builtins.compile = lambda *_: ''\n",
    "walks the frames": "    import sys\n    frame = sys._getframe()\n    while frame:\n"
    "        if 'expected' in frame.f_locals: return frame.f_locals['expected']\n"
    "        frame.f_globals['finish'] = lambda *_: None\n        frame = frame.f_back\n",
    "searches the heap": "    import gc\n    for o in gc.get_objects():\n"
    "        if isinstance(o, dict) and 'tests' in o: return 26 if '26' in str(o) else 2\n",
    "reads the tests": "    text = open('/job/tests.json').read()\n    return int(text.split('== ')[x > 1])\n",
    "rewrites the harness": "    open('/support/tests.py', 'w').write('')\n",
    "writes verdicts everywhere": "    import os\n    " + _SAY.format("\\npassed\\n") + "\n",
    "reads the nonce": "    import os, glob\n    for p in glob.glob('/proc/*/environ'):\n        n = open(p).read().split('NONCE=')\n"
    "        if len(n) > 1: os.write(2, ('\\n' + n[1][:32] + ' [\"passed\", \"\"]\\n').encode())\n",
    "answers before it is asked": "    pass\nimport json, os\nfor v in ({'ok': None}, {'ok': [2, [1]]}, {'ok': [27, [5]]}):\n"
    "    t = json.dumps(v).encode()\n    os.write(4, len(t).to_bytes(8, 'little') + t)\n",
    "sends half a message": "    import os; os.write(4, (100).to_bytes(8, 'little') + b'{'); os._exit(0)\n",
    "sends no JSON": "    import os; os.write(4, (3).to_bytes(8, 'little') + b'}{!')\n",
    "claims a huge message": "    import os; os.write(4, b'\\xff' * 8)\n",
    "sends a bomb of nesting": "    import os; t = b'[' * 10**6; os.write(4, len(t).to_bytes(8, 'little') + t)\n",
    "sends unknown kinds": "    import os; t = b'{\"ok\": [{\"code\": 1}, []]}'; os.write(4, len(t).to_bytes(8, 'little') + t)\n",
    "hangs": "    while True: pass\n",
    "closes the channel and hangs": "    import os, time; os.close(3); os.close(4); time.sleep(60)\n",
    "registers an exit handler": "    import atexit, os; atexit.register(lambda: os.write(4, b'passed')); raise KeyboardInterrupt\n",
    "replaces the encoder": "    import sys; sys.modules['wire'].encode = lambda v: {'eq': 'all'}\n",
    "claims that a module is missing": "    raise ImportError(\"No module named 'os'\")\n",
    "claims that the sandbox failed": "    import os; os.write(2, b'bwrap: cannot start\\n'); os._exit(1)\n",
    "kills its keeper": "    import os\n    for p in (1, -1): os.kill(p, 9)\n",
    "is out of memory": "    raise MemoryError\n",
    "is no Python": "    return (\n",
}
JAVASCRIPT = {
    "exits with 0": "process.exit(0); }",
    "patches console.assert": "console.assert = () => {}; globalThis.f = () => 2; }",
    "is equal by coercion": "return { valueOf() { return x * x + 1; }, [Symbol.toPrimitive]() { return x * x + 1; },"
    " toString() { return '26'; } }; }",
    "is a proxy": "return new Proxy({}, { get: () => 26 }); }",
    "handles exit": "process.on('exit', () => { process.exitCode = 0; }); throw 1; }",
    "reads the tests": "return eval(require('fs').readFileSync('/job/tests.json', 'utf8')); }",
    "patches the module loader": "require('module')._load = () => ({}); require('v8').serialize = () => Buffer.from('passed'); }",
    "writes verdicts": "require('fs').writeSync(4, 'passed'); require('fs').writeSync(2, '\\npassed\\n'); }",
    "claims that a module is missing": "throw new Error(\"Cannot find module 'assert'\"); }",
    "breaks the line of the verdict": r"throw new Error('a\n\r\u2028\u2029\u0085\ud800b'); }",
}
JAVA = {
    "exits with 0": "System.exit(0); return null; } }",
    "halts when loaded": "return null; } static { Runtime.getRuntime().halt(0); } }",
    "is equal to everything": "return new Object() { public boolean equals(Object o) { return true; } }; } }",
    "brings its own harness": "return 2; } }\nclass Tests { public static Object call(Object... a) { return 26; }"
    ' public static void main(String[] a) { System.err.println("passed"); } }\nclass Wire { }',
    "turns assertions off": "ClassLoader.getSystemClassLoader().setDefaultAssertionStatus(false);"
    ' throw new Error("No module named assert"); } }',
}
CPP = {
    "exits with 0": "_Exit(0); }",
    "exits before main": "return 0; } struct A { A() { _Exit(0); } } a;",
    "defines assert away": "return 0; }\n#define assert(x)\n#define NDEBUG",
    "defines == away": "return 0; } bool operator==(string, int) { return true; }\n#define f(x) string()",
    "exits in a constructor": "__attribute__((constructor)) void g() { } return 1; }"
    ' __attribute__((constructor)) void h() { write(4, "v\\2\\0\\0", 5); _Exit(0); }',
    "reads the nonce": 'puts(getenv("NONCE") ? "passed" : ""); return 2; }',
    "overruns its stack": "volatile char a[8]; for (int i = 0; i < 4096; i++) a[i] = 2; return a[0]; }",
    "patches the harness": 'return 2; } namespace moe_wire { template <> struct Code<long> { }; } extern "C" void abort() { _Exit(0); }',
}

# Objects of the program cross to the tests, which give them back, at last from deep within their own calls.
OBJECTS = Task(
    "o",
    "javascript",
    "",
    "",
    "",
    "",
    "const { Box, look } = importedProgram;\nconst given = { a: 1 };\nlook(given);\nlook(given);\nconst box = new Box(26);\n"
    "const value = box.value;\nlook(box);\nconst within = (calls) => (calls ? within(calls - 1) : look(value));\nwithin(5000);\n"
    "if (value !== 26 || given.a !== 1) throw new Error('wrong');\n",
    whole=True,
    classes=True,
)
BOX = "export class Box { constructor(n) { this.value = n; } }\nexport const look = (x) => null;\n"
_ANSWER = BOX + "import v8 from 'v8';\nconst real = v8.serialize;\nv8.serialize = (reply) => real(reply.after ? (%s)(reply) : reply);\n"
OBJECTS_WRONG = {
    "is bytes": _ANSWER % "(r) => (r.ok[1] === 26 ? { ok: ['value', new Uint8Array(1)] } : r)",
    "constructs a number": _ANSWER % "(r) => (r.ok[0] === 'mine' && !r.ok[2] ? { ok: ['value', 26] } : r)",
    "changes the class of an argument": _ANSWER % "(r) => (r.after.length === 2 && r.after[1][0] === 'object' ?"
    " { ok: r.ok, after: [['value', 0], ['object', [['__proto__', ['object', [['constructor', ['value', 1]]]]]]]] } : r)",
    "is so deep that it cannot be sent back": _ANSWER
    % "(r) => { let deep = ['array', []]; for (let i = 0; i < 1000; i++) deep = ['array', [deep]];"
    " return r.ok[1] === 26 ? { ok: deep } : r; }",
}


# What is equal to an object of the program is for the tests to say.
EQUALITY = replace(
    OBJECTS,
    tests="const { Box, larger, copy } = importedProgram;\nconst [one, two] = [new Box(1), new Box(2)];\n"
    "expect(larger(one, two)).toEqual(two);\nexpect(one).toEqual({ value: 1 });\n"
    "expect(copy(one)).not.toEqual(one);\n",
)
_BOXES = "export class Box { constructor(n) { this.value = n; %s } }\n"
_BOXES += "export const larger = (a, b) => %s;\nexport const copy = (a) => new Box(a.value);\n"
EQUALITY_RIGHT = _BOXES % ("", "(a.value > b.value ? a : b)")
EQUALITY_WRONG = {
    "holds the same": _BOXES % ("", "new Box(b.value)"),
    "is one object": (_BOXES % ("return (Box.one ??= this);", "a")).replace("new Box(a.value)", "null"),
    "is equal by coercion": _BOXES % ("this.valueOf = this[Symbol.toPrimitive] = () => 2; this.equals = () => true;", "new Box(b.value)"),
}


def cases() -> Iterator[object]:
    fast = {"java": ("exits with 0", "brings its own harness"), "cpp": ("exits with 0", "exits before main", "defines assert away")}
    for lang, programs in (("python", PYTHON), ("javascript", JAVASCRIPT), ("java", JAVA), ("cpp", CPP)):
        for name in programs:
            marks = () if name in fast.get(lang, programs) else (pytest.mark.slow,)
            yield pytest.param(lang, programs[name], id=f"{lang}: {name}", marks=marks)


@pytest.fixture(scope="module")
def judge(sandbox: Sandbox) -> Iterator[Judge]:
    with Judge(sandbox, Limits(wall_s=3)) as judge:
        yield judge


def verdict(judge: Judge, lang: str, completion: str) -> tuple[str, str]:
    return verdict_on(judge, TASKS[lang], completion)


def verdict_on(judge: Judge, task: Task, completion: str) -> tuple[str, str]:
    found = judge.judge(task, completion)
    if found.outcome == "tool missing" and "not found in /usr" in found.detail:
        pytest.skip(found.detail)
    return found.outcome, found.detail


@pytest.mark.parametrize("lang", TASKS)
def test_the_right_program_passes(lang: str, judge: Judge) -> None:
    assert verdict(judge, lang, RIGHT[lang]) == ("passed", "")


@pytest.mark.parametrize(("lang", "completion"), cases())
def test_no_verdict_can_be_forged(lang: str, completion: str, judge: Judge) -> None:
    outcome, detail = verdict(judge, lang, completion)
    assert outcome in WRONG, detail


@pytest.mark.parametrize("name", OBJECTS_WRONG)
def test_no_object_leaves_the_count(name: str, judge: Judge) -> None:
    outcome, detail = verdict_on(judge, OBJECTS, OBJECTS_WRONG[name])
    assert outcome in WRONG, detail


@pytest.mark.parametrize("name", EQUALITY_WRONG)
def test_no_object_decides_what_is_equal_to_it(name: str, judge: Judge) -> None:
    assert verdict_on(judge, EQUALITY, EQUALITY_RIGHT) == ("passed", "")
    outcome, detail = verdict_on(judge, EQUALITY, EQUALITY_WRONG[name])
    assert outcome == "failed", detail


def test_the_right_object_passes(judge: Judge) -> None:
    assert verdict_on(judge, OBJECTS, BOX) == ("passed", "")
    assert verdict_on(judge, OBJECTS, _ANSWER % "(r) => r") == ("passed", "")


@pytest.mark.parametrize(
    ("completion", "outcome"),
    [
        ("    while True: pass\n", "timeout"),
        ("    return bytearray(1 << 40)\n", "memory"),
        ("    x = [0] * (1 << 60)\n", "memory"),
        ("    return 1\ny = [0] * (1 << 60)\n", "memory"),  # as it is loaded
        ("    return (\n", "compile error"),
        ("    return 1\n", "failed"),
    ],
)
def test_outcomes_have_their_names(completion: str, outcome: str, judge: Judge) -> None:
    assert verdict(judge, "python", completion)[0] == outcome


@pytest.mark.parametrize(
    ("lang", "completion"),
    [
        ("javascript", "return new ArrayBuffer(2 ** 45).byteLength; }"),
        ("java", "return x; } static int[] all = new int[1 << 30]; }"),
        ("cpp", "return string(1ull << 40, 'x').size(); }"),
    ],
)
def test_memory_that_is_not_to_be_had(lang: str, completion: str, judge: Judge) -> None:
    assert verdict(judge, lang, completion)[0] == "memory"


def test_a_program_without_the_function_says_so(judge: Judge) -> None:
    task = Task("t", "python", "", "", "f", "", "assert f(1) == 2\n", whole=True)
    assert verdict_on(judge, task, "") == ("failed", "NameError: the program defines no function f")


def test_values_cross_as_they_are(judge: Judge) -> None:
    values = (
        "[None, True, 1, -10**5000, 1.5, float('inf'), 'é\\ud800', b'\\0', (1, (2,)), {1, 2}, frozenset({3}), {(1, 2): [3]}, 1j, range(3)]"
    )
    task = Task(
        "t", "python", "", "def f(x):\n", "f", "", f"for v in {values}:\n    r = f(v)\n    assert r == v and type(r) is type(v), v\n"
    )
    assert judge.judge(task, "    return x\n").outcome == "passed"
    listed = replace(task, tests="assert f([0, 1]) == [0, 1]\n")
    assert judge.judge(listed, "    return range(2)\n").outcome == "failed"  # as in one process


def test_a_value_of_an_own_class_crosses_as_the_plain_one(judge: Judge) -> None:
    """Whatever that class says its text or number is."""
    classes = "    from enum import Enum\n    class C(str, Enum):\n        RED = 'red'\n"
    classes += (
        "    class I(int):\n        __int__ = __index__ = lambda self: 7\n    class F(float):\n        __float__ = lambda self: 7.0\n"
    )
    tests = "r = f(0)\nassert r == ['red', 3, 0.5] and [type(v) for v in r] == [str, int, float], r\n"
    assert verdict_on(judge, replace(TASKS["python"], tests=tests), classes + "    return [C.RED, I(3), F(0.5)]\n") == ("passed", "")


def test_a_dataclass_can_be_made_where_annotations_are_texts(judge: Judge) -> None:
    task = replace(TASKS["python"], prompt="", tests="assert f(2) == 2\n")
    source = "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\n"
    assert verdict_on(judge, task, source + "def f(x):\n    return A(x).x\n") == ("passed", "")


def test_a_changed_argument_is_seen_by_the_tests(judge: Judge) -> None:
    task = Task("t", "python", "", "def f(x):\n", "f", "", "a = [3, 1, 2]\nassert f(a) is None\nassert a == [1, 2, 3]\n")
    assert judge.judge(task, "    x.sort()\n").outcome == "passed"
    assert judge.judge(task, "    x = sorted(x)\n").outcome == "failed"


@pytest.mark.parametrize(
    ("lang", "tests", "completion"),
    [
        ("python", "a = [1]\nassert f(a) is a\nassert f(7) == 7\n", "    return x\n"),
        ("javascript", "const a = [1];\nconsole.assert(f(a) === a && f(7) === 7);\n", "return x; }"),
    ],
)
def test_an_argument_that_comes_back_is_the_same_one(lang: str, tests: str, completion: str, judge: Judge) -> None:
    assert judge.judge(replace(TASKS[lang], tests=tests), completion).outcome == "passed"
    assert judge.judge(replace(TASKS[lang], tests=tests), completion.replace("x", "[1]")).outcome == "failed"


@pytest.mark.parametrize("place", ["'__proto__'", "'constructor'", "'0'", "1", "-2", "0.5"])
def test_only_an_argument_comes_back_as_itself(place: str, judge: Judge) -> None:
    """Its place is what the program says. Of anything else tests would hand their own objects to the program, or fail to."""
    task = replace(TASKS["javascript"], tests="f(f([1]));\n" + TASKS["javascript"].tests)
    lie = f"Array.prototype.indexOf = () => {place}; return x * x + 1; }}"
    assert verdict_on(judge, task, lie) == ("failed", "the program's answer is malformed")


def test_a_lone_array_is_one_argument(judge: Judge) -> None:
    head = "class Solution {\n    public static String[] f(String[] x) {\n"
    tests = (
        'class Main { public static void main(String[] a) { if (!Solution.f(new String[] {"b", "a"})[0].equals("a")) throw new Error(); } }'
    )
    task = replace(TASKS["java"], prompt=head, trusted=head, tests=tests)
    assert verdict_on(judge, task, "        java.util.Arrays.sort(x); return x; } }") == ("passed", "")


def test_an_exception_reaches_the_tests(judge: Judge) -> None:
    source = "try:\n    f(1)\nexcept ValueError as error:\n    assert 'why' in str(error)\nelse:\n    assert False\n"
    task = Task("t", "python", "", "def f(x):\n", "f", "", source)
    assert judge.judge(task, "    raise ValueError('why')\n").outcome == "passed"
    assert judge.judge(task, "    raise TypeError('why')\n").outcome == "failed"


@pytest.mark.parametrize(
    ("error", "caught"),
    [
        ("b'\\xff'.decode()", "UnicodeError"),
        ("__import__('json').loads('{')", "ValueError"),
        ("(_ for _ in ()).throw(type('Mine', (KeyError,), {})('why'))", "LookupError"),
        ("(_ for _ in ()).throw(type('Mine', (Exception,), {})('why'))", "Exception"),
    ],
    ids=["five arguments", "of a library", "own", "own without another ancestor"],
)
def test_an_exception_without_a_counterpart_arrives_as_its_ancestor(error: str, caught: str, judge: Judge) -> None:
    source = f"try:\n    f(1)\nexcept {caught} as error:\n    assert not isinstance(error, (TypeError, RuntimeError)) and str(error)\n"
    task = replace(TASKS["python"], tests=source + "else:\n    assert False\n")
    assert verdict_on(judge, task, f"    {error}\n") == ("passed", "")


def test_what_the_task_needs_and_is_not_there_is_no_wrong_answer(judge: Judge) -> None:
    task = Task("t", "python", "", "import no_such_module\ndef f(x):\n", "f", "", "assert f(1) == 2\n")
    found = judge.judge(task, RIGHT["python"])
    assert (found.outcome, "no_such_module" in found.detail) == ("tool missing", True)
    assert judge.judge(TASKS["python"], "    import no_such_module\n").outcome == "failed"


# Words of a task and of none of its statements, and a program that asks for one of them.
WORDS = {
    "python": ('def f(x):\n    """From a number to its roman numeral; import nothing. import romans"""\n', "import roman"),
    "python, said": ("def f(number):\n", "raise ImportError(\"No module named 'number'\")"),
    "javascript": ("// require('number') is not there\nfunction f(number) {\n", "return require('num'); }"),
    "java": ("class Solution {\n    // import roman\n    public static Object f(int roman) {\n", "return 1; } }\nclass A { roman.B b; }"),
    "cpp": ("#include <vector>\nint f(int x) {\n", "return 1; }\n#include <vect>\n"),
}


@pytest.mark.parametrize("case", WORDS)
def test_a_word_of_the_task_is_no_library_that_it_needs(case: str, judge: Judge) -> None:
    lang = case.partition(",")[0]
    prompt, completion = WORDS[case]
    task = replace(TASKS[lang], prompt=prompt, trusted="" if lang in ("python", "javascript") else prompt)
    if lang == "javascript":
        task = replace(task, tests=prompt.partition("function")[0] + task.tests)
    assert verdict_on(judge, task, f"    {completion}\n")[0] in WRONG


STATEMENTS = {
    "python": ("import roman", "from roman import x", "import os, roman as r", "    import roman.x", "from roman.x import y"),
    "javascript": ("const r = require('roman');", 'import r from "roman"', "import('roman')", "import 'roman';"),
    "java": ("import roman.*;", "import static roman.A.b;"),
    "cpp": ("#include <roman>", '# include "roman"'),
}


@pytest.mark.parametrize("lang", STATEMENTS)
def test_statements_that_need_a_library(lang: str) -> None:
    pattern = TOOLCHAINS[lang].uses.format("roman")
    for statement in STATEMENTS[lang]:
        assert re.search(pattern, f"x\n{statement}\n", re.MULTILINE), statement
        for other in ("romans", "aroman"):
            assert not re.search(pattern, statement.replace("roman", other), re.MULTILINE), statement


def test_what_the_tests_own_imports_need_and_is_not_there_is_no_wrong_answer(judge: Judge) -> None:
    """Exercism's tests in Java import JUnit, which may not be installed."""
    imports = "import org.no.such.Test;\n"
    task = Task("t", "java", "", "", "", imports, "class Main { public static void main(String[] a) {} }\n", whole=True, classes=True)
    assert verdict_on(judge, task, "class A {}")[0] == "tool missing"
    assert judge.judge(replace(task, trusted=""), imports + "class A {}").outcome == "compile error"


@pytest.mark.parametrize("lang", ["python", "cpp"])
def test_tests_that_never_got_going_say_nothing_of_the_program(lang: str, sandbox: Sandbox) -> None:
    with Judge(sandbox, Limits(memory_mib=2)) as judge:
        outcome, detail = verdict(judge, lang, RIGHT[lang])
    assert (outcome, detail.partition(":")[0]) == ("sandbox error", "the tests did not start")


def test_tests_that_cannot_run_are_no_wrong_answer(judge: Judge) -> None:
    broken = Task("t", "python", "", "def f(x):\n", "f", "", "assert f(1) ==\n")
    assert judge.judge(broken, RIGHT["python"]).outcome == "sandbox error"
    function = Task("t", "python", "", "def f(x):\n", "f", "", "assert f(lambda: 1) == 2\n")
    assert "cannot cross" in judge.judge(function, RIGHT["python"]).detail
    unnamed = replace(TASKS["cpp"], trusted="int f(int) {\n")
    assert "a parameter has no name" in judge.judge(unnamed, RIGHT["cpp"]).detail
