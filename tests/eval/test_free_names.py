"""Programs that were asked for in words alone: they may be called as they like, and bring what a file of their language begins with."""

from collections.abc import Iterator

import pytest

from eval.judge import Judge
from eval.sandbox import Limits, Sandbox
from eval.tasks import CORPUS, load_tasks

_LOOP = "  if (n == 0) return -1;\n  int p = 0;\n  while ((n & 1) == 0) { n >>= 1; p++; }\n  return p;\n"
PROGRAMS = {
    "python: a main below": "python|def mine(n):\n    return (n & -n).bit_length() - 1\n\n\ndef main():\n    print(mine(4))\n",
    "python: a helper within": "python|def mine(n):\n    def inner(m):\n        return (m & -m).bit_length()\n    return inner(n) - 1\n",
    "javascript: const": "javascript|const low = (n) => n & -n;\nconst mine = function (n) { return n ? Math.log2(low(n)) : -1; };\n",
    "javascript: main": "javascript|function mine(n) { return n ? Math.log2(n & -n) : -1; }\nfunction main() { return 7; }\nmain();\n",
    "java: class Main": f"java|public class Main {{\n static int lowestSetBitPosition(int n) {{\n{_LOOP} }}\n}}\n",
    "java: main": f"java|class A {{\n static int mine(int n) {{\n{_LOOP} }}\n public static void main(String[] a) {{ mine(4); }}\n}}\n",
    "java: another class": f"java|class A {{\n static class B {{\n int mine(int n) {{\n{_LOOP} }}\n}}\n static void main() {{}}\n}}\n",
    "cpp: main": f"cpp|#include <iostream>\nint mine(int n) {{\n{_LOOP}}}\n\nint main() {{\n  std::cout << mine(4);\n}}\n",
    "cpp: a vector": f"cpp|int mine(int n) {{\n  vector<int> v(n % 9);\n{_LOOP}}}\n",
}


@pytest.fixture(scope="module")
def judge(sandbox: Sandbox) -> Iterator[Judge]:
    with Judge(sandbox, Limits(wall_s=20)) as judge:
        yield judge


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_may_be_called_as_it_likes(name: str, judge: Judge) -> None:
    lang, _, program = PROGRAMS[name].partition("|")
    task = next(task for task in load_tasks(CORPUS, lang) if task.task_id.startswith("lowest_set_bit_position-"))
    found = judge.judge(task, program)
    if found.outcome == "tool missing":
        pytest.skip(found.detail)
    assert (found.outcome, found.detail) == ("passed", "")
    wrong = program.replace("- 1", "- 2").replace("-1", "-2")
    assert judge.judge(task, wrong).outcome == "failed"
