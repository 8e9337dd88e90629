"""Judges completions of programming tasks.

signature    the function that tests call, read from the task
languages    files and commands of each language
harness/     what runs inside: the two ends of the channel between tests and candidate, one pair a language
judge        `Judge`: builds both sides, runs them apart and reads the verdict
"""

from .judge import OUTCOMES, PASSED, UNJUDGED, Judge, Verdict

__all__ = ["OUTCOMES", "PASSED", "UNJUDGED", "Judge", "Verdict"]
