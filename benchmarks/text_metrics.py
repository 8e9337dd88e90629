"""Which text metric is fooled by what: `python -m benchmarks.text_metrics --data DIR`.

Every reference of the test split is scored against predictions whose worth is known: some that a metric should like (the reference, a
consistent renaming, most of the program, another solution of the same problem) and some that it should not (prose, the prompt, words,
programs for other problems). Means over the programs, x 100.
"""

import random
import re
import sys
from argparse import ArgumentParser, Namespace
from collections import Counter

from tqdm import tqdm

from eval.lexer import code_tokens
from eval.score import score_row
from eval.score_parts import keywords
from eval.text_metrics import TEXT_METRICS, text_score
from model.cli import make_parser, run_command
from model.languages import LANGUAGES
from train.data import load_pairs
from train.data.pairs import Pair

NAME = re.compile(r"[A-Za-z_]\w*")
COLUMNS = ("codebleu_library", "codebleu", "ngram", "weighted_ngram", "syntax", "dataflow", *TEXT_METRICS)


def predictions(rows: list[Pair], index: int, lang: str, seed: int) -> dict[str, str]:
    """{what it is: text} for the row at `index`; without "same problem" where no other row solves it."""
    rng = random.Random(f"{seed}/{index}")
    row, code = rows[index], rows[index].code
    lines, tokens = code.splitlines(), code_tokens(code, lang)
    others = [rows[(index + place) % len(rows)] for place in range(1, 11)]
    names = [token for token in tokens if NAME.fullmatch(token) and token not in keywords(lang)]
    numbers = {name: f"v{number}" for number, name in enumerate(dict.fromkeys(names))}
    most, _ = Counter(names or tokens).most_common(1)[0]
    prose = next((other.text for other in others if len(other.text) > 250), row.text)
    made = {
        "the reference": code,
        "in other layout": "\n".join(_spaced(line) for line in lines),
        "variables renamed": NAME.sub(lambda found: numbers.get(found[0], found[0]), code),
        "one sign dropped": _without_one_sign(code, rng),
        "first 80 % of the lines": "\n".join(lines[: max(1, len(lines) * 4 // 5)]),
        "first half of the lines": "\n".join(lines[: max(1, len(lines) // 2)]),
        "lines shuffled": "\n".join(rng.sample(lines, len(lines))),
        "the reference twice": f"{code}\n{code}",
        "tokens shuffled": " ".join(rng.sample(tokens, len(tokens))),
        "another row's program": others[0].code,
        "ten other programs": "\n".join(other.code for other in others),
        "the prompt": row.text,
        "prose": prose,
        "prose, a word a line": "\n".join(re.findall(r"\w+", prose)),
        "keywords": " ".join(rng.choices(sorted(keywords(lang)), k=len(tokens))),
        "its commonest name, repeated": "\n".join([most] * len(tokens)),
        "a comment": ("# " if lang == "python" else "// ") + " ".join(row.text.split()),
        "nothing": "",
    }
    if same := next((other.code for other in rows if other.group == row.group and other.code != code), None):
        made["another solution"] = same
    return made


def _spaced(line: str) -> str:
    """`line` with spaces round its signs; a line with a string or a comment as it is, since a space counts there."""
    return line if re.search(r"['\"`#/]", line) else re.sub(r"(?<=\S) ?([(),;\[\]]) ?", r" \1 ", line).rstrip()


def _without_one_sign(code: str, rng: random.Random) -> str:
    places = [found.start() for found in re.finditer(r"[(){}\[\]:;,]", code)]
    place = rng.choice(places) if places else len(code)
    return code[:place] + code[place + 1 :]


def main(args: Namespace) -> None:
    for lang in [args.lang] if args.lang else LANGUAGES:
        rows = load_pairs(args.data, lang, "test").rows
        random.Random(args.seed).shuffle(rows)
        sums: dict[str, Counter[str]] = {}
        for index in tqdm(range(min(args.limit, len(rows))), desc=lang, unit="program", leave=False):
            for name, prediction in predictions(rows, index, lang, args.seed).items():
                found = {**vars(score_row(rows[index].code, prediction, lang)), **vars(text_score(rows[index].code, prediction, lang))}
                total = sums.setdefault(name, Counter())
                for column, value in found.items():
                    if value is not None:
                        total.update({column: value, f"{column} n": 1})
        print(f"{lang + ' (x 100)':<32}{'n':>5}" + "".join(f"{column.replace('_', ' '):>17}" for column in COLUMNS))
        for name, total in sums.items():
            cells = "".join(f"{100 * total[column] / max(1, total[f'{column} n']):>17.1f}" for column in COLUMNS)
            print(f"{name:<32}{total['codebleu n']:>5}{cells}")


def parse() -> ArgumentParser:
    parser = make_parser("benchmarks.text_metrics", __doc__ or "")
    parser.add_argument("--data", default="corpus", help="corpus, xlcost, a file or a folder with columns text and code")
    parser.add_argument("--lang", choices=list(LANGUAGES), help="one language only (default: all)")
    parser.add_argument("--limit", type=int, default=100, help="programs of each language")
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main, parse()))
