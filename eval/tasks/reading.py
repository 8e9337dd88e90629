"""What the adapters share: finding the function that a prompt asks for."""

import re

_FUNCTION = {
    "python": r"^def\s+({})\s*\(",
    "javascript": r"^(?:const|let|var|function\*?)\s+({})\s*[=(]",
}


def before_entry(source: str, entry: str, lang: str) -> str:
    """The part of Python or JavaScript `source` above the last definition of `entry`; `ValueError` if it has none."""
    found = list(re.finditer(_FUNCTION[lang].format(re.escape(entry)), source, re.MULTILINE))
    if not found:
        raise ValueError(f"{entry} is not defined in {source[-200:]!r}")
    return source[: found[-1].start()]


def last_function(source: str, lang: str) -> str:
    """The name of the last function that `source` defines; for Java and C++ "", as their signatures are parsed."""
    if lang not in _FUNCTION:
        return ""
    names = re.findall(_FUNCTION[lang].format(r"\w+"), source, re.MULTILINE)
    if not names:
        raise ValueError(f"no function is defined in {source[-200:]!r}")
    return names[-1]
