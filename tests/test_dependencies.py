"""requirements.lock, setup.py and docs/dependencies.md speak of the same packages."""

import re
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PINS = {
    canonicalize_name(name): version
    for file in ("constraints.txt", "requirements.lock")
    for name, version in re.findall(r"^([\w.-]+)==(\S+)", (ROOT / file).read_text(), re.MULTILINE)
}


def test_the_lock_has_what_setup_py_asks_for():
    asked = [Requirement(text) for text in re.findall(r'^ {4}"([^"]+)",', (ROOT / "setup.py").read_text(), re.MULTILINE)]
    assert len(asked) > 15
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
