"""The versions of the compilers and interpreters that decide verdicts. (bubblewrap's is with the sandbox's facts.)"""

import subprocess
from collections.abc import Iterable

from .sandbox.isolation import ENVIRONMENT

_ASKED = {
    "python": ("python3", "--version"),
    "javascript": ("node", "--version"),
    "java": ("javac", "-version"),
    "cpp": ("g++", "--version"),
}


def tool_versions(langs: Iterable[str]) -> dict[str, str | None]:
    """{tool: what it says of its version}, None if it is not installed; of those that programs in these languages meet in the sandbox."""
    return {_ASKED[lang][0]: _version(_ASKED[lang]) for lang in langs}


def _version(command: tuple[str, ...]) -> str | None:
    environment = dict(pair.split("=", 1) for pair in ENVIRONMENT)
    try:
        said = subprocess.run(["env", *command], env=environment, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return None
    return (said.stdout or said.stderr).partition("\n")[0]  # Java's before 9 is on stderr
