"""A tiny Mistral base with its tokenizer, adapters trained on nothing, and mixtures made of them."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import MistralConfig, MistralForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

from model import MoEForCausalLM
from model.compose import compose

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,  # so that logits, and their differences, are of order 1
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
GENERATION = {"max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": None}
LETTERS = " abcdefghijklmnopqrstuvwxyz0123456789ABCDEF.,:;#+-*/=<>(){}\n"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each letter."""
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>", model_max_length=256
    )


def save_mixtral(folder: Path) -> None:
    torch.manual_seed(3)
    MixtralForCausalLM(MixtralConfig(**SHAPE, num_local_experts=4)).save_pretrained(folder)


def save_nf4_mixture(folder: Path, chat_template: str | None = None) -> Path:
    """That Mixtral with its experts in NF4 and a tokenizer, in a folder within `folder`, which is returned."""
    save_mixtral(folder / "dense")
    MoEForCausalLM.from_pretrained(folder / "dense", quantize="nf4").save_pretrained(folder / "nf4")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder / "nf4")
    return folder / "nf4"


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    torch.manual_seed(0)
    MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=None, rope_theta=10000.0)).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_adapter(base) -> Callable[..., Path]:
    """Writes a PEFT adapter of `base`, both of whose factors are random, into a folder, and returns the folder."""

    def make(folder: Path, seed: int = 1, **options) -> Path:
        torch.manual_seed(seed)
        settings = {"r": 4, "lora_alpha": 12, "target_modules": ["gate_proj", "up_proj", "down_proj"], **options}
        model = get_peft_model(MistralForCausalLM.from_pretrained(base), LoraConfig(**settings))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(str(folder))
        return folder

    return make


@pytest.fixture(scope="session")
def adapters(base, make_adapter) -> list[Path]:
    return [make_adapter(base.parent / f"expert-{index}", seed=index + 1) for index in range(3)]


@pytest.fixture(scope="session")
def mixtral(tmp_path_factory) -> Path:
    """transformers' own Mixtral, saved with separate w1, w2, w3."""
    folder = tmp_path_factory.mktemp("mixtral")
    save_mixtral(folder)
    return folder


@pytest.fixture
def make_recipe(tmp_path, base) -> Callable[..., Path]:
    """Writes a mergekit-moe file with two positive prompts of different lengths and a negative one for each source."""
    default = base

    def make(sources: list[object], base: Path = default, **changes) -> Path:
        experts = [
            {"source_model": str(source), "positive_prompts": [f"{n} is good", f"so is {n}+{n}"], "negative_prompts": [f"bad {n}"]}
            for n, source in enumerate(sources)
        ]
        path = tmp_path / "recipe.yml"
        path.write_text(yaml.safe_dump({"base_model": str(base), "gate_mode": "hidden", "experts": experts, **changes}))
        return path

    return make


@pytest.fixture
def run_compose(tmp_path, make_recipe) -> Callable[..., Path]:
    """Composes `sources` on the base and returns the mixture's folder."""

    def run(sources: list[object], *, layout: str | None = None, quantize: str = "none", out: str = "mixture", **changes) -> Path:
        recipe, target = make_recipe(sources, **changes), tmp_path / out
        compose(Namespace(config=str(recipe), out=str(target), layout=layout, quantize=quantize, seed=0))
        return target

    return run


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(3, 64, (3, 17), generator=torch.Generator().manual_seed(7))


@pytest.fixture
def padded(ids) -> dict[str, torch.Tensor]:
    """Three prompts of different lengths, padded on the left."""
    mask = torch.ones_like(ids)
    mask[0, :6] = mask[1, :1] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.fixture
def ours(mixtral) -> MoEForCausalLM:
    return MoEForCausalLM.from_pretrained(mixtral)


@pytest.fixture
def theirs(mixtral) -> MixtralForCausalLM:
    return MixtralForCausalLM.from_pretrained(mixtral)


@pytest.fixture
def noisy(mixtral) -> MoEForCausalLM:
    """A mixture with a trained-looking Wnoise."""
    model = MoEForCausalLM.from_pretrained(mixtral, router_type="noisy_topk")
    torch.manual_seed(5)
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.mlp.gate.noise_weight, std=0.1)
    return model
