"""`python -m model.generate --model DIR --lang cpp "TEXT"`: writes a program, token by token as it comes."""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from .adapters import Adapter, is_adapter
from .checkpoint import model_folder
from .cli import add_precision, check_sampling, make_parser, run_command
from .config_file import read_config
from .generation import WholeTextStreamer, encode_prompts, generate_as_told, pad_left, room_behind
from .infill import ANCHOR, encode_infill
from .languages import LANGUAGES
from .load import load_model
from .prompt import format_prompt
from .strict_json import LINE, check_text

GAP = "<FILL>"


def check_language(lang: str, folders: list[Path]) -> None:
    """ValueError if `lang` is neither a known language nor one that these models or adapters were trained on, by their own record."""
    trained: list[str] = []
    for folder in folders:
        trained += [Adapter(folder).name] if is_adapter(folder) else read_config(folder).get("expert_names") or []
    if lang not in (*LANGUAGES, *trained):
        raise ValueError(f"unknown language {lang!r}; known: {', '.join(dict.fromkeys((*LANGUAGES, *trained)))}")


def read_gap(path: Path) -> tuple[str, str]:
    """The text before and behind the one `GAP` in a file."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.stat().st_size > LINE:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; a program here has at most {LINE}")
    try:
        before, *behind = path.read_text(encoding="utf-8").split(GAP)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from None
    if len(behind) != 1:
        raise ValueError(f"{path} must have one {GAP}, where the missing piece belongs, not {len(behind)}")
    return before, behind[0]


def generate(args: argparse.Namespace) -> None:
    """The command: one completion to standard output."""
    if args.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens must be at least 1, not {args.max_new_tokens}")
    check_sampling(args.temperature, args.top_p)
    check_text(args.text, "the description")
    check_language(args.lang, [model_folder(name) for name in (args.model, args.adapter) if name])
    gap = read_gap(Path(args.infill)) if args.infill else None
    set_seed(args.seed)
    model: Any
    model, tokenizer = load_model(args.model, adapter=args.adapter, precision=args.precision)
    prompt = format_prompt(args.text, args.lang, tokenizer)
    row = encode_infill(tokenizer, prompt, *gap) if gap else encode_prompts(tokenizer, [prompt])[0]
    inputs = pad_left(tokenizer, [row], model.device)
    streamer = WholeTextStreamer(tokenizer, len(row), ANCHOR if gap else "")
    with torch.inference_mode():
        generate_as_told(
            model,
            tokenizer,
            inputs,
            temperature=args.temperature,
            top_p=args.top_p,
            max_new_tokens=min(args.max_new_tokens, room_behind(model, tokenizer, row)),
            streamer=streamer,
        )
    if not streamer.printed:
        print("the model ended at once; it may know such programs by other words, those of its training data", file=sys.stderr)


def main() -> int:
    parser = make_parser(
        "model.generate",
        "Writes a program for a description, streaming it to standard output. Only the flags count, not the model's generation_config.",
    )
    text = "compute the matrix trace | number of rows ; the sum is zero at first ; add the entry on the diagonal"
    parser.add_argument("text", help=f'what the program does, in the words of the training data: "{text}" for those of the corpus')
    parser.add_argument("--model", required=True, help="folder of a base, an adapter or a mixture")
    parser.add_argument("--adapter", help="folder of a PEFT adapter on that base")
    parser.add_argument(
        "--lang", required=True, metavar="LANG", help=f"{', '.join(LANGUAGES)}, or the model's own; it only names it in the prompt"
    )
    parser.add_argument("--infill", metavar="FILE", help=f"write what belongs in place of {GAP} in this program, not a whole one")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="tokens (fewer where the context ends)")
    parser.add_argument("--temperature", type=float, default=0.0, help="of sampling; 0 takes the likeliest token")
    parser.add_argument("--top-p", type=float, default=1.0, help="sample from the likeliest tokens that have this probability together")
    add_precision(parser)
    return run_command(generate, parser)


if __name__ == "__main__":
    raise SystemExit(main())
