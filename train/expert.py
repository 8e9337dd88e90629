"""`python -m train.expert --lang cpp`: one language's expert, trained with QLoRA.

The base is loaded in bitsandbytes' NF4 with nested absmax and stays frozen; PEFT's LoRA learns beside the three FFN
matrices of every layer; with `--target all` also beside attention's q and o, which a mixture then mixes by a gate of
their own. The loss counts the completion only. Dettmers et al. 2023, QLoRA, arXiv:2305.14314.

The output is a plain PEFT adapter with `run.json`, `log.jsonl` and TensorBoard's files beside it.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from peft import prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel, set_seed

from model.adapters import BASE_FACT, Adapter, base_fingerprint
from model.budget import room_of
from model.checkpoint import Checkpoint, model_folder
from model.cli import make_parser
from model.config_file import read_config
from model.peft_model import loading
from model.prompt import prompt_template, set_format

from .base import planned_base, resolve_base
from .data.prompts import collate_packed
from .lora import ExpertTrainer, add_lora, add_lora_flags, check_lora_flags, go_on_from, lora_config, planned_expert, planned_expert_loss
from .plan import TrainingPlan, add_plan_flags, plan_training, show_plan
from .plan_data import Rows, plan_rows, rows_of
from .plan_models import base_config
from .processes import run_in_all
from .results import write_output
from .rows import add_row_flags, check_rows, encode_rows, read_pairs
from .settings import add_training_flags, check_flags, has_bf16, settings_of, use_checkpointing
from .trainer import train_pairs
from .workspace import check_free, workspace

DEFAULT_OUT = "runs/expert-{lang}"


def load_tokenizer(path: str) -> Any:
    """The base's tokenizer, with a padding token."""
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token  # padding is masked by length, so the id does not matter
    return tokenizer


def load_base(path: str, *, checkpointing: bool) -> tuple[PreTrainedModel, Any]:
    """The base in NF4 (nested absmax), ready for LoRA, and its tokenizer; `ValueError` if it lacks the FFN's matrices."""
    dtype = torch.bfloat16 if has_bf16() else torch.float32
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)
    if Path(path).is_dir():
        read_config(Path(path))
        Checkpoint(Path(path)).check_values()  # names a missing or damaged file in one sentence
    device = {"": torch.cuda.current_device() if torch.cuda.is_available() else "cpu"}
    with loading(Path(path)):
        model = AutoModelForCausalLM.from_pretrained(
            path, quantization_config=nf4, dtype=dtype, device_map=device, use_safetensors=True, trust_remote_code=False
        )
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # On a CPU with AVX512-BF16 bitsandbytes 0.50 repacks the weights at the first evaluation, with their absmax in bf16, and goes
            # on training on that: not the mixture's NF4 (logits off by 0.15 in the demo's base), and not what a resumed run starts from.
            module.support_avx512bf16_for_cpu = False
    prepare = prepare_model_for_kbit_training(
        model, use_gradient_checkpointing=checkpointing, gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    return prepare, load_tokenizer(path)


def _plan(args: argparse.Namespace, config: PreTrainedConfig, rows: Rows, *, timed: bool) -> TrainingPlan:
    make = partial(planned_expert, factors=lora_config(args))
    return plan_training(config, args, make, rows, step=partial(planned_expert_loss, packing=args.packing), timed=timed)


def train_expert(args: argparse.Namespace) -> None:
    """The command: loads, trains in a workspace, and writes the adapter to `--out`."""
    check_flags(args)
    check_lora_flags(args)
    room_of(args.gpu)
    out = Path(args.out or DEFAULT_OUT.format(lang=args.lang))
    if not args.plan:  # what can be known before the base is trained, downloaded or loaded
        check_free(out, resume=args.resume)
    check_rows(args)
    if args.plan:
        config, tokenizer, why = planned_base(args.base, args.gpu)
        print(f"base: {why}")
        return show_plan(_plan(args, config, plan_rows(args, [args.lang], tokenizer), timed=True))
    # Before the base is trained or downloaded, which takes minutes: what is wrong with the data is known in seconds.
    to_train, to_validate = read_pairs(args, "train", args.limit), read_pairs(args, "valid", args.eval_limit)
    base, why = resolve_base(args.base)
    print(f"base: {why}")
    config, tokenizer = base_config(base), load_tokenizer(base)
    set_format(tokenizer, args.format)
    train_rows, data = encode_rows(args, to_train, tokenizer, "train", args.limit)
    eval_rows, eval_data = encode_rows(args, to_validate, tokenizer, "valid", args.eval_limit)
    del to_train, to_validate  # a data set's whole text
    if not args.ignore_plan:  # before the base takes its part of what is free
        _plan(args, config, rows_of([len(row["input_ids"]) for row in train_rows], "counted"), timed=False).check()
    set_seed(args.seed)
    model, _ = load_base(base, checkpointing=use_checkpointing(args, torch.cuda.is_available()))
    expert = add_lora(model, lora_config(args))
    if args.init:
        go_on_from(expert, args, model_folder(base))
    facts = {
        "lang": args.lang,
        "base": base,
        BASE_FACT: base_fingerprint(model_folder(base)),
        **data,
        "valid_sha256": eval_data["data_sha256"],
        "rows": {"train": data["rows"], "valid": eval_data["rows"]},
        **({"init_fingerprint": Adapter(Path(args.init)).fingerprint} if args.init else {}),
        "prompt_template": prompt_template(tokenizer),
        "settings": settings_of(args),
    }
    options = {"neftune_alpha": args.neftune_alpha, "loraplus_ratio": args.loraplus_ratio, "packing": args.packing}
    trainer_class = partial(ExpertTrainer, **options)
    packed = partial(collate_packed, pad_token_id=tokenizer.pad_token_id, max_length=args.max_length)
    with workspace(out, facts, resume=args.resume) as folder:
        trainer = train_pairs(expert, tokenizer, train_rows, eval_rows, args, folder, trainer_class, packed if args.packing else None)
        write_output(out, trainer, folder, figures={}, **facts)
    print(f"expert: {out}")


def main() -> int:
    parser = make_parser("train.expert", "Trains the expert of one language with QLoRA on a frozen NF4 base.")
    parser.add_argument(
        "--base", default="auto", help="folder, hub name or mistral-7b; auto: Mistral-7B where it fits, else the embedded base"
    )
    parser.add_argument("--out", help=f"output folder (default: {DEFAULT_OUT})")
    add_plan_flags(parser)
    add_row_flags(parser)
    add_lora_flags(parser)
    text = "several rows in one sequence of --max-length, each with its own attention, in place of padding"
    parser.add_argument("--packing", action=argparse.BooleanOptionalAction, default=False, help=text)
    add_training_flags(parser, learning_rate=2e-4, batch_size=8, epochs=1, max_length=1024)
    return run_in_all(train_expert, parser)


if __name__ == "__main__":
    raise SystemExit(main())
