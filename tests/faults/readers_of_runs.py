"""Readers of what runs leave: figures, samples, logs, unfinished work."""

import json
from argparse import Namespace
from collections.abc import Iterator
from contextlib import redirect_stderr, suppress
from io import StringIO
from pathlib import Path

import torch

from eval.html import render
from eval.pass_rates import TASKS, pass_rate_change, read_counts
from eval.report import markdown, read_routing
from eval.report_build import build, gather
from eval.runs import ARRAYS, CODEBLEU, LOG, PASS_AT_K, PROGRAMS, ROUTING, SAMPLES, STUDY, STUDY_FILE, read_inputs, read_training
from eval.token_classes import CLASSES
from model.checkpoint_writer import save_whole
from model.output import RUN, write_json
from model.resume import resumable_folder
from model.unfinished import FACTS
from tests.faults.reader import Reader


def run_files(folder: Path) -> Iterator[Reader]:
    runs = folder / "runs"
    scored, routing, passed, training, study = (runs / name for name in ("scored", "routing", "passed", "training", "study"))
    for run in (scored, routing, passed, training, study):
        run.mkdir(parents=True)
    write_json(scored / RUN, SCORED)
    (scored / SAMPLES).write_text("".join(json.dumps({**SAMPLE, "id": f"p{n}", "codebleu": n / 4}) + "\n" for n in range(4)))
    write_json(routing / RUN, {"program": ROUTING, "figures": {"cpp": {"own_top1": 0.8}}})
    by_class = [[[0.5, 0.5] for _ in CLASSES]]
    row = {"n": 4, "tokens": 9, "top1": [[0.7, 0.3]], "topk": [[1.0, 1.0]], "own_top1": [0.7], "own_topk": [1.0], "entropy_bits": [0.5]}
    languages = {"cpp": {**row, "by_class": by_class, "nmi_class": [0.1]}}
    write_json(routing / ARRAYS, {"experts": ["cpp", "java"], "classes": CLASSES, "languages": languages, "nmi_language": [0.2]})
    program = {
        "lang": "cpp",
        "id": "p",
        "kind": "family",
        "text": "do it",
        "pieces": ["int", " a;"],
        "choices": [[[0, 60, 1, 40]], [[0, 9, 1, 1]]],
    }
    write_json(routing / PROGRAMS, {"model": "m", "experts": ["cpp", "java"], "max_new_tokens": 9, "programs": [program]})
    write_json(passed / RUN, PASSED)
    (passed / SAMPLES).write_text('{"task_id": "t0", "n": 2, "passed": 1}\n{"task_id": "t1", "n": 2, "passed": 0}\n')
    (passed / TASKS).write_text('{"task_id": "t0", "n": 2, "passed": 1}\n{"task_id": "t1", "n": 2, "passed": 0}\n')
    (training / LOG).write_text('{"step": 10, "loss": 2.5, "seconds": 4}\n{"step": 20, "loss": 1.5}\n{"step": 20, "eval_loss": 1.75}\n')
    write_json(training / RUN, {"figures": {"peak_bytes": 5, "device": "cpu"}})
    write_json(study / RUN, {"program": STUDY, "seed": 0, "figures": {}})
    write_json(study / STUDY_FILE, STUDIED)
    facts = folder / ".facts.unfinished"
    (facts / "output").mkdir(parents=True)
    write_json(facts / FACTS, {"recipe": "0" * 8, "--seed": "0"})
    save_whole(facts / "gates.safetensors", {"mlp": torch.zeros(1)})

    def report(of_training: bool = False) -> None:
        inputs = read_inputs([scored, routing, passed, study])
        logs = [(training, *read_training(training))]
        made = build(inputs, logs, gather(inputs, logs), "title", 0)
        assert "title" in markdown(made, {}, {})
        assert render(made, {}, {}, read_routing(inputs.routing, PROGRAMS))

    def counts() -> None:
        tasks = [Namespace(task_id=name, group=name) for name in ("t0", "t1")]
        found = read_counts(passed, tasks, PASSED)
        pass_rate_change(tasks, found, [{"task_id": "t0", "n": 2, "passed": 2}], [1], "0")

    def resume() -> None:
        with redirect_stderr(StringIO()), suppress(_Stop), resumable_folder(folder / "facts", {"recipe": "0" * 8, "--seed": "0"}):
            raise _Stop

    yield Reader("run.json of eval.codebleu", scored / RUN, report, 5)
    yield Reader("samples of eval.codebleu", scored / SAMPLES, report, 5)
    yield Reader("run.json of eval.pass_at_k", passed / RUN, report, 5)
    yield Reader("run.json of eval.study", study / RUN, report, 5)
    yield Reader("study.json of eval.study", study / STUDY_FILE, report, 5)
    yield Reader("counts of eval.pass_at_k", passed / TASKS, counts, 5)
    yield Reader("arrays of eval.routing", routing / ARRAYS, report, 5)
    yield Reader("programs of eval.routing", routing / PROGRAMS, report, 5)
    yield Reader("log of training", training / LOG, report, 5)
    yield Reader("facts of unfinished work", facts / FACTS, resume, 5)


class _Stop(Exception):
    """Leaves the unfinished work as it is."""


_FIGURES = {
    **{"n": 4, "empty": 0, "codebleu": 0.4, "codebleu_corpus": 0.4, "codebleu_library": 0.5},
    "parts": {"ngram": 0.4, "weighted_ngram": 0.4, "syntax": 0.4, "dataflow": None},
    "metrics": {"chrf": {"value": 0.4, "low": 0.3, "high": 0.5, "n": 4}},
}
SAMPLE = {"lang": "cpp", "kind": "family", "group": "g", "text": "t", "reference": "r", "prediction": "p"}
SCORED = {
    **{"program": CODEBLEU, "name": "base", "role": "base", "model": "m", "max_new_tokens": 9, "prompt_template": "t", "dtype": "float32"},
    **{"quantization": None, "seed": 0, "figures": {"cpp": {"family": _FIGURES}}},
    "cost": {"device": "cpu", "parameters": 9, "peak_bytes": 9, "generation_seconds": 2.0, "tokens_per_second": 4.0, "batch_size": 4},
}
PASSED = {
    **{"program": PASS_AT_K, "name": "m", "model": "m", "tasks": "sets/t.jsonl", "lang": "cpp", "n": 2, "temperature": 0.8, "top_p": 0.95},
    **{
        "max_new_tokens": 9,
        "top_k": 0,
        "stop": [],
        "template": True,
        "timeout": 10.0,
        "memory": 512,
        "limit": None,
        "adapter": None,
        "sandbox": {"isolated": True},
    },
    "cost": {**SCORED["cost"], "dtype": "bfloat16", "quantization": None},
    "judging": {"programs": 4, "seconds": 2.5, "jobs": 2},
    "figures": {
        **{"tasks": 2, "samples": 4, "outcomes": {"passed": 1, "failed": 3, "tool missing": 0, "sandbox error": 0}},
        "pass_at_k": {"1": {"value": 0.25, "low": 0.0, "high": 0.5, "tasks": 2}},
    },
}
_ESTIMATE = {"value": 0.4, "low": 0.3, "high": 0.5}
_OWN = {"cpp": {"codebleu": _ESTIMATE, "loss": _ESTIMATE}, "all": {"codebleu": _ESTIMATE, "loss": _ESTIMATE}}
_SYSTEM = {"model": "m", "adapter": None, "router": None, "prompt_of": None, "stop": []}
_CLAIM = {"system": "ours", "against": "base", "metric": "codebleu", "lang": "all", "ratio": _ESTIMATE, "p": 0.25, "p_holm": 0.5}
STUDIED = {
    "study": {
        "systems": [{"name": "base", **_SYSTEM}, {"name": "ours", **_SYSTEM, "adapter": {"cpp": "a"}}],
        **{"langs": ["cpp"], "lengths": [9], "baseline": "base", "experts": None},
    },
    "prompt_templates": {"base": "t", "ours": "u"},
    "contamination": {"cpp": {"family": {"n": 4, "median": 0.5, "greatest": 0.75, "seen": 1}}},
    "lengths": {
        "9": {
            "family": {
                **{"points": {"cpp": {"n": 4}}, "systems": {"base": _OWN, "ours": _OWN}, "claims": [_CLAIM]},
                "unseen": {"points": {"cpp": {"n": 3}}, "systems": {"base": {"cpp": {"codebleu": _ESTIMATE}}}},
            }
        }
    },
}
