"""requirements.lock, setup.py and docs/dependencies.md speak of the same packages."""

import ast
import re
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PINS = {
    canonicalize_name(name): version
    for file in ("constraints.txt", "requirements.lock")
    for name, version in re.findall(r"^([\w.-]+)==(\S+)", (ROOT / file).read_text(), re.MULTILINE)
}


def asked_for() -> list[Requirement]:
    """What the lists `..._REQUIRES` of setup.py name, and what the extras that they name bring along."""
    lists = [
        ast.literal_eval(node.value)
        for node in ast.parse((ROOT / "setup.py").read_text()).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List)
    ]
    asked = [Requirement(text) for texts in lists for text in texts]
    for requirement in list(asked):
        for extra in requirement.extras:
            brought = map(Requirement, requires(requirement.name) or [])
            asked += [one for one in brought if one.marker and f'extra == "{extra}"' in str(one.marker)]
    return asked


def test_the_lock_has_what_setup_py_asks_for():
    asked = asked_for()
    assert {"torch", "fastapi", "pytest", "ruff"} <= {requirement.name for requirement in asked}
    for requirement in asked:
        assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)]), requirement


def test_every_pin_but_torch_has_hashes():
    blocks = re.split(r"^(?=[\w.-]+==)", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE)[1:]
    assert len(blocks) == len(PINS) - 1
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}$", block, re.MULTILINE) for block in blocks)


def test_every_package_has_its_licence_in_the_documentation():
    table = "\n".join(line for line in (ROOT / "docs/dependencies.md").read_text().splitlines() if line.startswith("| "))
    named = set(map(canonicalize_name, re.findall(r"[\w.-]+", table)))
    assert set(PINS) <= named, set(PINS) - named
