"""`python -m model.generate --model DIR --lang cpp "TEXT"`: writes a program, token by token as it comes."""

import argparse
from typing import Any

import torch
from transformers import TextStreamer, set_seed

from .cli import add_precision, make_parser, run_command
from .generation import encode_prompts, pad_left
from .languages import LANGUAGES
from .load import load_model
from .prompt import format_prompt


def generate(args: argparse.Namespace) -> None:
    """The command: one completion to standard output."""
    if args.max_new_tokens < 1 or args.temperature < 0 or not 0 < args.top_p <= 1:
        raise ValueError("--max-new-tokens must be at least 1, --temperature at least 0 and --top-p in (0, 1]")
    prompt = format_prompt(args.text, args.lang)
    set_seed(args.seed)
    model: Any
    model, tokenizer = load_model(args.model, adapter=args.adapter, precision=args.precision)
    inputs = pad_left(tokenizer, encode_prompts(tokenizer, [prompt]), model.device)
    sampling = {"do_sample": True, "temperature": args.temperature, "top_p": args.top_p} if args.temperature else {"do_sample": False}
    with torch.inference_mode():
        model.generate(
            **inputs,
            **sampling,
            max_new_tokens=args.max_new_tokens,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        )


def main() -> int:
    parser = make_parser("model.generate", "Writes a program for a description, streaming it to standard output.")
    parser.add_argument("text", help='what the program does, e.g. "Sum of the first n odd numbers"')
    parser.add_argument("--model", required=True, help="folder of a base, an adapter or a mixture")
    parser.add_argument("--adapter", help="folder of a PEFT adapter on that base")
    parser.add_argument("--lang", required=True, metavar="LANG", help=f"one of {', '.join(LANGUAGES)}; it picks the prompt's format only")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="tokens")
    parser.add_argument("--temperature", type=float, default=0.0, help="of sampling; 0 takes the likeliest token")
    parser.add_argument("--top-p", type=float, default=1.0, help="sample from the likeliest tokens that have this probability together")
    add_precision(parser)
    return run_command(generate, parser)


if __name__ == "__main__":
    raise SystemExit(main())
