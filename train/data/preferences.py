"""Preferences: a prompt, a completion to prefer and one to avoid, from a file of them or from judged completions.

Judged completions are the rows of `samples.jsonl` that `python -m eval.pass_at_k` writes: of one task every program that passed is
preferred to one that failed. What could not be judged says nothing about a program and is in no pair.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path
from random import Random

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from .pairs import MALFORMED
from .prompts import IGNORED, LONG_COMPLETION, LONG_PROMPT, Example, encode_text
from .reading import Row, first_columns, read_well_formed

PAIR = ("prompt", "chosen", "rejected")
SAMPLE = ("task_id", "prompt", "completion", "outcome")
SAMPLES_FILE = "samples.jsonl"
PASSED = "passed"
FAILED = ("failed", "compile error", "timeout", "memory")
UNJUDGED = ("tool missing", "sandbox error")

NOT_JUDGED = "not judged (tool missing, sandbox error)"
TWICE = "same completion of a task"
BOTH_WAYS = "same completion passed and failed"
NONE_PASSED, NONE_FAILED = "task without a passing completion", "task without a failing completion"
EQUAL = "chosen equals rejected"
SAME_PAIR = "same pair"
OVER = "over --pairs-per-task"
RULES = (MALFORMED, NOT_JUDGED, TWICE, BOTH_WAYS, NONE_PASSED, NONE_FAILED, EQUAL, SAME_PAIR, OVER)


@dataclass(frozen=True)
class Preference:
    prompt: str  # as the model reads it, but for BOS
    chosen: str
    rejected: str
    task: str  # pairs of one task stand in one split
    whole: bool = True  # whether the completions are texts of their own; else they go on with the prompt's, in mid-program


def load_preferences(paths: Iterable[Path], pairs_per_task: int, seed: int) -> tuple[list[Preference], dict[str, int]]:
    """The pairs of all files, shuffled with `seed`, and how many rows or pairs each rule dropped, in the order of their turn.

    paths: .jsonl[.gz], .json or .parquet files with the columns of PAIR (and `task_id` or `group`, where several prompts are of one task)
        or of SAMPLE (and `lang`), or folders that eval.pass_at_k wrote. The files of one task's samples are taken together. Completions
        of rows whose `whole` is false are encoded as the rest of a text.
    pairs_per_task: pairs that are kept of a prompt at most, drawn with `seed`, so that no task outweighs the others.
    ValueError for other columns, an unknown outcome, or if no pair is left; FileNotFoundError for a missing file.
    """
    dropped: Counter[str] = Counter(dict.fromkeys(RULES, 0))
    pairs: list[Preference] = []
    samples: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for path in paths:
        file = path / SAMPLES_FILE if path.is_dir() else path
        found = first_columns(file)
        columns = next((columns for columns in (PAIR, SAMPLE) if set(columns) <= set(found)), None)
        if columns is None:
            needed = f"{', '.join(PAIR)} are needed, or {', '.join(SAMPLE)}, as eval.pass_at_k writes them"
            raise ValueError(f"{file} has the columns {', '.join(sorted(found)) or 'none'}; {needed}")
        rows, bad = read_well_formed(file, columns=columns, may_be_empty=("chosen", "rejected", "completion"))
        dropped[MALFORMED] += bad
        if columns == PAIR:
            pairs += [_preference(row) for row in rows]
        else:
            for row in rows:
                samples[row["task_id"], str(row.get("lang", ""))].append(row)
    for of_task in samples.values():
        pairs += _pair_up(of_task, dropped, seed)
    kept = _balance(_distinct(pairs, dropped), pairs_per_task, dropped, seed)
    Random(seed).shuffle(kept)
    if not kept:
        counts = ", ".join(f"{rule} {count}" for rule, count in dropped.items() if count) or "it is empty"
        raise ValueError(f"no pair is left of {', '.join(map(str, paths))}: {counts}")
    return kept, dict(dropped)


def divide(pairs: list[Preference], valid_share: float) -> tuple[list[Preference], list[Preference]]:
    """Pairs to train on and pairs to validate with: `valid_share` of the tasks, at least one, by the SHA-256 of their name."""
    ranked = sorted({pair.task for pair in pairs}, key=lambda task: hashlib.sha256(task.encode()).digest())
    if len(ranked) < 2:
        raise ValueError("the pairs are all of one task; at least 2 are needed, one of them to validate with")
    valid = set(ranked[: max(1, round(valid_share * len(ranked)))])
    return [pair for pair in pairs if pair.task not in valid], [pair for pair in pairs if pair.task in valid]


def encode_preferences(
    pairs: list[Preference], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[Example], dict[str, int]]:
    """The example of each chosen completion, with that of the rejected one under `rejected`, and how many pairs were too long.

    No completion is cut: both end with EOS, and a program without its end is another program.
    """
    rows: list[Example] = []
    dropped = {LONG_PROMPT: 0, LONG_COMPLETION: 0}
    for pair in tqdm(pairs, desc="tokenise", unit="pair", disable=None):
        chosen, rejected = (encode_text(pair.prompt, text, tokenizer, pair.whole) for text in (pair.chosen, pair.rejected))
        if max(len(chosen["input_ids"]), len(rejected["input_ids"])) <= max_length:
            rows.append({**chosen, "rejected": rejected})  # type: ignore[dict-item]
        else:
            dropped[LONG_PROMPT if chosen["labels"].count(IGNORED) >= max_length else LONG_COMPLETION] += 1
    return rows, dropped


def digest(pairs: Iterable[Preference]) -> str:
    """SHA-256 of the pairs, in order."""
    return hashlib.sha256(repr([astuple(pair) for pair in pairs]).encode()).hexdigest()


def _preference(row: Row) -> Preference:
    task = str(row.get("group") or row.get("task_id") or row["prompt"])
    return Preference(row["prompt"], row["chosen"], row["rejected"], task, row.get("whole") is not False)


def _pair_up(rows: list[Row], dropped: Counter[str], seed: int) -> list[Preference]:
    """Pairs of one task's completions, in an order drawn with `seed`: every one that passed or failed is in at least one of them."""
    passed: dict[str, Row] = {}
    failed: dict[str, Row] = {}
    for row in rows:
        if row["outcome"] in UNJUDGED:
            dropped[NOT_JUDGED] += 1
            continue
        if row["outcome"] != PASSED and row["outcome"] not in FAILED:
            raise ValueError(f"{row['where']} has the outcome {row['outcome']!r}; known: {', '.join((PASSED, *FAILED, *UNJUDGED))}")
        seen = passed if row["outcome"] == PASSED else failed
        dropped[TWICE] += row["completion"].strip() in seen
        seen.setdefault(row["completion"].strip(), row)
    for text in passed.keys() & failed.keys():  # near the time limit a program may do either
        dropped[BOTH_WAYS] += 2
        del passed[text], failed[text]
    if not passed or not failed:
        dropped[NONE_FAILED if passed else NONE_PASSED] += len(passed) + len(failed)
        return []
    random = Random(f"{seed}/{rows[0]['task_id']}")
    good, bad = (random.sample(list(side.values()), len(side)) for side in (passed, failed))
    together = ((good[i % len(good)], bad[i % len(bad)]) for i in range(max(len(good), len(bad))))
    # The prompt is the failing row's: a reference solution may come from a run that never asked this model.
    return [
        Preference(worse["prompt"], better["completion"], worse["completion"], worse["task_id"], worse.get("whole") is not False)
        for better, worse in together
    ]


def _distinct(pairs: list[Preference], dropped: Counter[str]) -> list[Preference]:
    kept: dict[tuple[str, str, str], Preference] = {}
    for pair in pairs:
        if pair.chosen.strip() == pair.rejected.strip():
            dropped[EQUAL] += 1
        elif (key := (pair.prompt, pair.chosen.strip(), pair.rejected.strip())) in kept:
            dropped[SAME_PAIR] += 1
        else:
            kept[key] = pair
    return list(kept.values())


def _balance(pairs: list[Preference], most: int, dropped: Counter[str], seed: int) -> list[Preference]:
    """At most `most` pairs of each prompt, drawn with `seed`."""
    by_prompt: dict[str, list[Preference]] = defaultdict(list)
    for pair in pairs:
        by_prompt[pair.prompt].append(pair)
    kept = []
    for prompt, of_prompt in by_prompt.items():
        dropped[OVER] += max(0, len(of_prompt) - most)
        kept += Random(f"{seed}/{prompt}").sample(of_prompt, min(most, len(of_prompt)))
    return kept
