"""`python -m eval.study STUDY.yml --out DIR`: base, experts, merges and mixtures under one protocol, and a paired test of each claim.

Every system gets the same points, shuffled by the seed, and decodes greedily, once, at the greatest of the lengths: at a smaller one its
completion is a prefix. DIR holds a run of eval.codebleu for each system and length (`DIR/256/base`, ...), which eval.report reads,
`study.json` (every figure), `study.md` (the tables) and `run.json`. Called again, it scores only what is not there yet; a run that was made
with other settings, weights or data is refused. docs/study.md says what the figures are.
"""

import sys
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from model.adapters import is_adapter
from model.cli import add_precision, make_parser, run_command
from model.config_file import read_config
from model.cost import reset_peak
from model.load import model_fingerprint, model_folder
from model.output import RUN, output_folder, write_json, write_run
from model.strict_json import read_json
from model.unfinished import locked
from train.data import load_pairs

from . import codebleu
from .answers import check_router
from .codebleu import SETTINGS, answer, load, model_facts, open_sandbox, write_scores
from .comparison import compare_systems, study_rows
from .contamination import CONTAMINATED, found_shares
from .figures import ALL, SCORE
from .points import Points, load_points
from .runs import STUDY, STUDY_FILE
from .sandbox import Sandbox
from .study_file import Source, Study, System, read_study
from .study_tables import markdown, terminal

REUSED_IF_SAME = (*(key for key in SETTINGS if key != "batch_size"), "seed", "name", "fingerprint", "data", "sandbox")


def main(args: Namespace) -> None:
    study = read_study(args.study)
    _check_folder(args.out)
    # all of them first: what is missing is said before hours of work
    prints = {source.run: _fingerprint(system, source) for system in study.systems for source in system.sources(study.langs)}
    flags = ["--model", "", "--out", str(args.out), "--data", study.data, "--split", study.split, "--limit", str(study.limit)]
    points, sources = load_points(codebleu.parse().parse_args([*flags, "--seed", str(args.seed)]), study.langs)
    shares = _shares(study, points)
    sandbox = open_sandbox(args.unsafe_no_sandbox) if study.compile else None
    with locked(args.out):
        for system in study.systems:
            for source in system.sources(study.langs):
                _score(args, study, system, source, points, sources, prints[source.run], sandbox)
        figures = {
            str(length): compare_systems(study, study_rows(args.out / str(length), study, shares), args.seed) for length in study.lengths
        }
        result = {
            "study": asdict(study),
            "points": sources,
            "prompt_templates": _templates(args.out / str(study.lengths[0]), study),
            "contamination": shares and _summary(shares),
            "lengths": figures,
        }
        write_json(args.out / STUDY_FILE, result)
        (args.out / "study.md").write_text(markdown(study, result, args.seed), encoding="utf-8")
        write_run(args.out, seed=args.seed, figures=_headlines(figures), program=STUDY, study=str(args.study), data=sources)
    print(terminal(study, result))
    print(f"written to {args.out}")


def _fingerprint(system: System, source: Source) -> str:
    """Of the weights; ValueError if there is no such model, or if it cannot have the system's router."""
    folder = model_folder(source.model)
    if system.router:
        check_router(source.model, {} if is_adapter(folder) else read_config(folder), system.router, source.langs)
    return model_fingerprint(source.model, source.adapter)


def _score(
    args: Namespace,
    study: Study,
    system: System,
    source: Source,
    points: Points,
    sources: dict[str, Any],
    weights: str,
    sandbox: Sandbox | None,
) -> None:
    """Writes the runs of one model at those lengths that are not there yet."""
    outs = {length: args.out / str(length) / source.run for length in study.lengths}
    settings = {length: _settings(args, study, system, source, length, out) for length, out in outs.items()}
    data = {lang: sources[lang] for lang in source.langs}
    facts = {"fingerprint": weights, "data": data, "sandbox": sandbox and sandbox.facts}
    missing = [length for length, out in outs.items() if not _is_there(out, {**vars(settings[length]), **facts})]
    if not missing:
        print(f"{source.run}: scored before")
        return
    print(f"\n{source.run}")
    chosen = {lang: points[lang] for lang in source.langs}
    resettable = reset_peak()
    model, tokenizer = load(settings[missing[-1]], chosen)
    answers = answer(model, tokenizer, chosen, settings[missing[-1]])
    for length in missing:
        outs[length].parent.mkdir(exist_ok=True)
        completions = {lang: row.texts(tokenizer, length, system.stop) for lang, row in answers.items()}
        made = model_facts(settings[length], model, tokenizer)
        if not resettable and model.device.type == "cpu":
            del made["cost"]["peak_bytes"]  # it would be that of the systems before
        with output_folder(outs[length]) as folder:
            write_scores(folder, settings[length], chosen, completions, answers, sandbox, **made, data=data)


def _settings(args: Namespace, study: Study, system: System, source: Source, length: int, out: Path) -> Namespace:
    """The flags with which eval.codebleu would make the run."""
    flags: dict[str, Any] = {"model": source.model, "adapter": source.adapter, "router": system.router, "prompt-of": system.prompt_of}
    flags |= {"data": study.data, "split": study.split, "limit": study.limit, "batch-size": study.batch_size, "max-new-tokens": length}
    flags |= {"device": args.device, "precision": args.precision, "seed": args.seed, "name": source.run, "out": out}
    settings = codebleu.parse().parse_args([f"--{flag}={value}" for flag, value in flags.items() if value is not None])
    settings.stop = system.stop
    return settings


def _is_there(run: Path, wanted: dict[str, Any]) -> bool:
    """Whether a run was made before; ValueError if it was made otherwise."""
    if not (run / RUN).is_file():
        return False
    facts = read_json(run / RUN)
    for key in REUSED_IF_SAME:
        if facts.get(key) != wanted[key]:
            message = f"{run} was made with {key} = {facts.get(key)!r}, but the study says {wanted[key]!r}"
            raise ValueError(f"{message}; remove that run, or give another --out")
    return True


def _check_folder(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()) and not (out / "lock").exists():
        raise FileExistsError(f"the output {out} exists and is not a study's; name another or remove it first")


def _templates(folder: Path, study: Study) -> dict[str, str]:
    """{system: the prompt's template}: a model with a chat template is asked in its own."""
    return {system.name: read_json(folder / system.sources(study.langs)[0].run / RUN)["prompt_template"] for system in study.systems}


def _headlines(lengths: dict[str, Any]) -> dict[str, Any]:
    """{length: {kind: {system: CodeBLEU over all languages}}}."""
    return {
        length: {
            kind: {name: own[ALL][SCORE]["value"] for name, own in figures["systems"].items() if ALL in own}
            for kind, figures in kinds.items()
        }
        for length, kinds in lengths.items()
    }


def _shares(study: Study, points: Points) -> dict[str, dict[str, list[float]]] | None:
    """{language: {kind: the share of each point's shingles that stand in training rows}}."""
    if study.train is None:
        return None
    shares: dict[str, dict[str, list[float]]] = {}
    for lang, kinds in points.items():
        training = [pair.code for pair in load_pairs(study.train, lang, "train").rows]
        shares[lang] = {kind: found_shares([point.code for point in chosen], training, lang) for kind, chosen in kinds.items()}
    return shares


def _summary(shares: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """{language: {kind: n, median and greatest share, points that count as seen}}."""
    return {
        lang: {
            kind: {"n": len(own), "median": median(own), "greatest": max(own), "seen": sum(share >= CONTAMINATED for share in own)}
            for kind, own in kinds.items()
        }
        for lang, kinds in shares.items()
    }


def parse() -> ArgumentParser:
    parser = make_parser(STUDY, __doc__ or "")
    parser.add_argument("study", type=Path, metavar="STUDY.yml", help="the systems and the protocol; examples/study.yml")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, or to go on in")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--unsafe-no-sandbox", action="store_true", help="with `compile: true`: compile unprotected; recorded in run.json")
    add_precision(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main, parse()))
