"""`python -m model.plan --config DIR|NAME|CONFIG.yml --gpu a10g`: memory by part and time per token, before anything is loaded.

Memory of weights and KV cache is exact; the activations of reading the prompt are estimated, and the time is a model of the card
(`footprint.py`). For `--gpu cpu` the speeds of this machine are measured first, in a second; of a card they are its data sheet's.
"""

import argparse
import re
from pathlib import Path

from moe_kernels.cards import CARDS
from moe_kernels.cpu_card import measure_cpu

from .budget import RUNTIME, Budget, card_of, room_of
from .checkpoint import Checkpoint, model_folder, stored_dtype
from .cli import make_parser, run_command
from .config_file import MOST_EXPERTS
from .configuration_moe import EXPERT_LAYOUTS, QUANTIZATIONS, MoEConfig
from .footprint import ACTIVATIONS, CACHE, activation_bytes, cache_bytes, token_time, weight_bytes
from .from_pretrained import resolve_config
from .ingredients import open_recipe

_SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
_BASES = {
    "mistral-7b": (4096, 14336, 32, 32, 8, 32000),
    "llama-2-7b": (4096, 11008, 32, 32, 32, 32000),
    "tinyllama-1.1b": (2048, 5632, 22, 32, 4, 32000),
}
_NAME = re.compile(r"(?P<base>.+)-x(?P<experts>[1-9]\d*)")


def plan_mixture(config: MoEConfig, gpu: str, context: int, batch: int) -> Budget:
    """Bytes by part of `batch` sequences of `context` tokens on a card (or `cpu`, `auto`); ValueError for an unknown card."""
    room = room_of(gpu)
    parts: dict[str, float] = {**weight_bytes(config), CACHE: cache_bytes(config, context, batch)}
    parts[ACTIVATIONS] = activation_bytes(config, context, batch, card_of(gpu), room.is_cuda)
    parts["runtime"] = RUNTIME["cuda" if room.is_cuda else "cpu"]
    return Budget(parts, room)


def config_of(name: str, layout: str | None, quantization: str | None, rank: int) -> MoEConfig:
    """The configuration of a mixture's folder, of one that a recipe would make, or of a shape such as `mistral-7b-x4`.

    `layout` and `quantization` None: as the folder has them; for a recipe and a shape that compose would choose, and `nf4`.
    FileNotFoundError or ValueError if there is no such thing.
    """
    if Path(name).is_file():
        return open_recipe(Path(name), layout, _quantization(quantization or "nf4")).config
    if (match := _NAME.fullmatch(name)) and match["base"] in _BASES and not Path(name).exists():
        experts = int(match["experts"])
        if experts > MOST_EXPERTS:
            raise ValueError(f"{name} has {experts} experts; there may be {MOST_EXPERTS}")
        shape = dict(zip(_SHAPE, _BASES[match["base"]], strict=True))
        settings = {"num_local_experts": experts, "num_experts_per_tok": min(2, experts), "dtype": "bfloat16"}
        config = MoEConfig.from_dict({**shape, **settings})
        layout, quantization = layout or "lora", quantization or "nf4"
    else:
        config = _folder_config(name)
    return _changed(config, layout, quantization, rank)


def _folder_config(name: str) -> MoEConfig:
    try:
        folder = model_folder(name)
    except FileNotFoundError:
        known = ", ".join(f"{base}-x4" for base in _BASES)
        raise FileNotFoundError(f"{name} is neither a folder, a recipe, a model in the local hub cache nor one of {known}") from None
    config = resolve_config(folder, None, {})
    config.dtype = config.dtype or stored_dtype(Checkpoint(folder))  # as loading takes it
    return config


def _changed(config: MoEConfig, layout: str | None, quantization: str | None, rank: int) -> MoEConfig:
    changes: dict[str, object] = {}
    if layout is not None and layout != config.expert_layout:
        changes = {"expert_layout": layout, "lora_rank": rank if layout == "lora" else 0}
    if quantization is not None:
        changes["quantization"] = _quantization(quantization)
    return MoEConfig.from_dict({**config.to_dict(), **changes})


def _quantization(name: str) -> str | None:
    return None if name == "none" else name


def plan(args: argparse.Namespace) -> None:
    """The command: prints the plan; ValueError if the mixture does not fit."""
    for flag in ("context", "batch_size", "rank"):
        if getattr(args, flag) < 1:
            raise ValueError(f"--{flag.replace('_', '-')} is {getattr(args, flag)}; it must be at least 1")
    config = config_of(args.config, args.layout, args.quantize, args.rank)
    budget = plan_mixture(config, args.gpu, args.context, args.batch_size)
    shared = f" and {config.num_shared_experts} shared" if config.num_shared_experts else ""
    kind = f"{config.num_local_experts} experts{shared}, {config.expert_layout} layout, {config.quantization or config.dtype}"
    print(f"{kind}; {args.batch_size} x {args.context} tokens\n{budget}")
    if card := card_of(args.gpu) if budget.room.is_cuda else measure_cpu(decoding=True):
        time = token_time(config, card, args.context, args.batch_size)
        rate = args.batch_size / time.seconds
        print(f"{'a token (modelled)':<18} {time.seconds * 1e3:8.2f} ms: {rate:.1f} tokens/s; it reads {time.bytes / 1e9:.2f} GB")
        causes = {"memory": time.memory, "compute": time.compute, "launches": time.launches, "host": time.host, "floor": time.floor}
        print(f"{'of which':<18} {', '.join(f'{name} {seconds * 1e3:.2f} ms' for name, seconds in causes.items())}")
        print(f"{'with':<18} {card.dram / 1e9:.0f} GB/s ({SOURCES[card.name == 'cpu']}), of which products reach {card.dram_share:.0%}")
    budget.check("this mixture", advice(config))


SOURCES = ("of the data sheet; the share is assumed", "read by this CPU now; the share is of NF4 products")


def advice(config: MoEConfig) -> str:
    """What would make the mixture smaller: only what it does not have yet."""
    changes = ["--layout lora"] if config.expert_layout == "dense" else []
    changes += ["--quantize nf4"] if config.quantization is None else []
    return f"try {', '.join([*changes, 'a smaller --context or --batch-size'])}"


def main() -> int:
    parser = make_parser("model.plan", __doc__ or "")
    parser.add_argument(
        "--config", required=True, help=f"folder of a mixture, compose's CONFIG.yml, or {', '.join(f'{name}-xE' for name in _BASES)}"
    )
    parser.add_argument("--gpu", default="auto", help=f"card to plan for ({', '.join(CARDS)}, cpu); auto: this machine")
    parser.add_argument("--layout", choices=EXPERT_LAYOUTS, help="plan this layout instead of the config's; lora for a shape")
    parser.add_argument(
        "--quantize", choices=[name or "none" for name in QUANTIZATIONS], help="instead of the config's; nf4 for a recipe or shape"
    )
    parser.add_argument("--rank", type=int, default=16, help="of LoRA factors that the config does not have")
    parser.add_argument("--context", type=int, default=4096, help="tokens in the KV cache of each sequence")
    parser.add_argument("--batch-size", type=int, default=1, help="sequences at a time")
    return run_command(plan, parser)


if __name__ == "__main__":
    raise SystemExit(main())
