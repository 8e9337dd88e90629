"""Reads the folders that evaluation and training commands wrote, and refuses to compare what is not comparable."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model import strict_json
from model.output import RUN
from model.strict_json import parse_json, read_json

from . import run_files
from .run_files import check_shape

LOG = "log.jsonl"
SAMPLES = "samples.jsonl"
ARRAYS = "routing.json"
PROGRAMS = "programs.json"
STUDY_FILE = "study.json"
CODEBLEU, ROUTING, PASS_AT_K, STUDY = "eval.codebleu", "eval.routing", "eval.pass_at_k", "eval.study"
ROLES = ("base", "expert", "mixture")
FACTS = ("role", "figures", "max_new_tokens")  # what a report needs of a run
COLUMNS = ("id", "lang", "kind", "group", "text", "reference", "prediction", "codebleu")  # and of a sample
COMPARED = ("prompt_template", "max_new_tokens")  # what has to agree before two runs are compared

Sample = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One run of an evaluation command. `samples` = {lang: {kind: rows in file order}}, of eval.codebleu alone."""

    path: Path
    facts: dict[str, Any]
    samples: dict[str, dict[str, list[Sample]]]

    @property
    def elsewhere(self) -> bool:
        """Whether its completions were given: nobody knows how they were made."""
        return bool(self.facts.get("samples"))

    @property
    def role(self) -> str:
        """By the label's first word if that is a role ("expert-cpp"), else what the command found the model to be."""
        word = str(self.facts.get("name", "")).replace("_", "-").split("-")[0]
        return word if word in ROLES else str(self.facts["role"])


@dataclass(frozen=True)
class Systems:
    """The runs to be compared: the base, the mixture (one each at most) and the expert of each language."""

    base: Run | None
    mixture: Run | None
    experts: dict[str, Run]

    @property
    def runs(self) -> list[Run]:
        """Each once."""
        found = [run for run in (self.base, *self.experts.values(), self.mixture) if run is not None]
        return list({run.path: run for run in found}.values())

    def of(self, lang: str) -> dict[str, Run]:
        """{role: run} of the runs that scored `lang`, in the order of ROLES."""
        found = {"base": self.base, "expert": self.experts.get(lang), "mixture": self.mixture}
        return {role: run for role, run in found.items() if run is not None and lang in run.samples}


@dataclass(frozen=True)
class Inputs:
    """What a report is made of."""

    systems: Systems
    routing: Run | None
    passes: list[Run]
    study: Run | None

    @property
    def runs(self) -> list[Run]:
        """All but those in the study's folder."""
        found = [run for run in (*self.systems.runs, self.routing, *self.passes, self.study) if run is not None]
        return list({run.path: run for run in found}.values())


def read_inputs(paths: Iterable[Path]) -> Inputs:
    """The runs by what they are; `ValueError` if a role is taken twice, or nothing is there to compare."""
    runs = [read_run(path) for path in paths]
    of = {program: [run for run in runs if run.facts["program"] == program] for program in (CODEBLEU, ROUTING, PASS_AT_K, STUDY)}
    if not (of[CODEBLEU] or of[PASS_AT_K] or of[STUDY]):
        raise ValueError(f"none of the runs is of {CODEBLEU}, {PASS_AT_K} or {STUDY}, so there is nothing to report")
    return Inputs(_systems(of[CODEBLEU]), _only(of[ROUTING], "routing"), of[PASS_AT_K], _only(of[STUDY], "study"))


def _systems(scored: list[Run]) -> Systems:
    experts: dict[str, Run] = {}
    for run in scored:
        for lang in run.samples if run.role == "expert" else ():
            if lang in experts:
                raise ValueError(f"{experts[lang].path} and {run.path} are both expert runs on {lang}; give each expert its --lang")
            if (own := run.facts.get("adapter_lang")) not in (None, lang):
                raise ValueError(
                    f"{run.path} scored {lang} with an adapter that was trained on {own}: it is not the expert of {lang}; "
                    f"score each expert with its own --lang, or leave that run out"
                )
            experts[lang] = run
    base, mixture = (_only([run for run in scored if run.role == role], role) for role in ("base", "mixture"))
    systems = Systems(base, mixture, experts)
    check_comparable(systems)
    return systems


def read_run(path: Path) -> Run:
    """One run's folder; one clear sentence if it is missing, or another command's."""
    if not path.is_dir():
        raise FileNotFoundError(f"there is no run {path}")
    if not (path / RUN).is_file():
        raise ValueError(f"{path} is not the output of a finished command: it has no {RUN}")
    facts = read_json(path / RUN)
    program = facts.get("program")
    known = (CODEBLEU, ROUTING, PASS_AT_K, STUDY)
    if program not in known:
        raise ValueError(f"{path} was not written by {', '.join(known[:-1])} or {STUDY}{f' but by {program}' if program else ''}")
    if program != CODEBLEU:
        shape = {ROUTING: {"figures": dict}, STUDY: {"figures": dict, "seed": int}, PASS_AT_K: run_files.PASSED_SHAPE}[program]
        check_shape(facts, shape, f"{path / RUN}")
        if program == PASS_AT_K and (wrong := [k for k in facts["figures"]["pass_at_k"] if not (k.isascii() and k.isdecimal())]):
            raise ValueError(f"{path / RUN}: figures: pass_at_k has the key {wrong[0][:80]!r}, which is no number of completions")
        return Run(path, facts, {})
    _check_keys(facts, FACTS, f"{path / RUN}")
    check_shape(facts, run_files.SCORED_SHAPE, f"{path / RUN}")
    if facts["role"] not in ROLES:
        raise ValueError(f"{path / RUN} has the role {facts['role']!r}; known: {', '.join(ROLES)}")
    samples: dict[str, dict[str, list[Sample]]] = {}
    for row in read_rows(path / SAMPLES, COLUMNS, run_files.SAMPLE_SHAPE):
        samples.setdefault(row["lang"], {}).setdefault(row["kind"], []).append(row)
    if not samples:
        raise ValueError(f"{path / SAMPLES} holds no samples")
    _check_keys(facts["figures"], tuple(samples), f"the figures of {path / RUN}")
    return Run(path, facts, samples)


def read_training(path: Path) -> tuple[str, list[dict[str, Any]]]:
    """(label, log entries) of a training command's output folder."""
    if not (path / LOG).is_file():
        raise FileNotFoundError(f"{path} is not a training command's output: it has no {LOG}")
    if (path / RUN).is_file():
        check_shape(read_json(path / RUN), run_files.TRAINED_SHAPE, f"{path / RUN}")
    entries = [entry for entry in read_rows(path / LOG, ("step",), run_files.ENTRY_SHAPE) if "loss" in entry or "eval_loss" in entry]
    if not entries:
        raise ValueError(f"{path / LOG} holds no entry with a loss")
    return path.resolve().name, entries


def check_comparable(systems: Systems) -> None:
    """`ValueError` naming the two runs and what differs, unless all runs on a language share points, prompt and length limit."""
    for lang in sorted({lang for run in (systems.base, systems.mixture, *systems.experts.values()) if run for lang in run.samples}):
        first, *others = systems.of(lang).values()
        for other in others:
            for key in COMPARED:
                if key == "prompt_template" and (first.elsewhere or other.elsewhere):
                    continue
                if first.facts.get(key) != other.facts.get(key):
                    sides = f"{first.facts.get(key)!r} and {other.facts.get(key)!r}"
                    raise ValueError(f"{first.path} and {other.path} cannot be compared: {key} is {sides}")
            if left := _points(first, lang) ^ _points(other, lang):
                kind, point, _ = min(left)
                message = f"{first.path} and {other.path} scored different {lang} points, such as {point!r} ({kind})"
                raise ValueError(f"{message}; use the same --data, --limit and --seed")


def _points(run: Run, lang: str) -> set[tuple[str, str, str]]:
    return {(kind, row["id"], row["reference"]) for kind, rows in run.samples[lang].items() for row in rows}


def _only(runs: list[Run], role: str) -> Run | None:
    if len(runs) > 1:
        raise ValueError(f"{' and '.join(str(run.path) for run in runs)} are all {role} runs; give one, or rename them with --name")
    return runs[0] if runs else None


def read_rows(path: Path, keys: tuple[str, ...], shape: Any = None) -> list[dict[str, Any]]:
    """The JSON objects in `path`, one a line, each of which must have `keys`, and the `shape` if one is given."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    rows = []
    for number, line in enumerate(lines_in(path), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}, is not JSON: {error}") from error
        _check_keys(row, keys, f"{path}, line {number},")
        if shape:
            check_shape(row, shape, f"{path}, line {number}")
        rows.append(row)
    return rows


def lines_in(path: Path) -> Iterator[bytes]:
    """The lines of a file; ValueError naming it if one is longer than any row."""
    with path.open("rb") as file:
        yield from strict_json.read_lines(file, path)


def _check_keys(value: Any, keys: tuple[str, ...], where: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{where} holds a {type(value).__name__}, not a JSON object")
    if missing := [key for key in keys if key not in value]:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
