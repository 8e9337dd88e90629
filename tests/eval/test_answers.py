"""The oracle gate against the single expert in PEFT, losses against transformers' own one by one, and shorter answers as prefixes."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, MistralForCausalLM

from eval.answers import ORACLE, ask, oracle_gate, reference_losses
from model.compose import compose
from model.load import load_model
from train.data import Pair, load_pairs
from train.data.prompts import encode_pair

LANGS = ("python", "java", "cpp")
TARGETS = {"ffn": ["gate_proj", "up_proj", "down_proj"], "all": ["gate_proj", "up_proj", "down_proj", "q_proj", "v_proj"]}


@pytest.fixture(scope="module", params=["ffn", "all"])
def experts(request: pytest.FixtureRequest, base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder with an adapter for each language, and a mixture of them in the lora layout."""
    folder = tmp_path_factory.mktemp("experts")
    recipe: dict[str, Any] = {"base_model": str(base_folder), "gate_mode": "random", "experts": []}
    for seed, lang in enumerate(LANGS):
        torch.manual_seed(seed)
        config = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS[request.param])
        model = get_peft_model(MistralForCausalLM.from_pretrained(base_folder), config)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(str(folder / f"expert-{lang}"))
        recipe["experts"].append({"source_model": str(folder / f"expert-{lang}")})
    (folder / "recipe.yml").write_text(yaml.safe_dump(recipe))
    compose(Namespace(config=str(folder / "recipe.yml"), out=str(folder / "mixture"), layout=None, quantize="none", seed=0))
    return folder, folder / "mixture"


@pytest.fixture(scope="module")
def points(data_folder: Path) -> list[Pair]:
    return load_pairs(str(data_folder), "cpp", "test").rows[:5]


@pytest.mark.parametrize("lang", LANGS)
def test_the_oracle_is_the_expert_alone(experts: tuple[Path, Path], base_folder: Path, lang: str) -> None:
    folder, mixture_folder = experts
    mixture, _ = load_model(mixture_folder)
    assert mixture.config.expert_layout == "lora"
    expert = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), str(folder / f"expert-{lang}")).eval()
    ids = torch.randint(3, mixture.config.vocab_size, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        before, expected = mixture(ids).logits, expert(ids).logits
        with oracle_gate(mixture, lang):
            found = mixture(ids).logits
        after = mixture(ids).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (before - expected).abs().max() > 0.01  # the gate's own choice is another function
    assert torch.equal(before, after)


def test_generation_and_loss_under_the_oracle(experts: tuple[Path, Path], base_folder: Path, points: list[Pair]) -> None:
    folder, mixture_folder = experts
    settings = {"max_new_tokens": 12, "batch_size": 2}
    found = ask(*load_model(mixture_folder), "cpp", points, router=ORACLE, **settings)
    expected = ask(*load_model(base_folder, folder / "expert-cpp"), "cpp", points, **settings)
    assert found.ids == expected.ids
    assert [loss.nats for loss in found.losses] == pytest.approx([loss.nats for loss in expected.losses], rel=1e-4)


def test_shared_experts_stay_under_the_oracle(mixture_folder: Path) -> None:
    mixture, _ = load_model(mixture_folder)
    router = mixture.model.layers[0].mlp.gate
    router.num_shared, router.shared_scale = 1, 0.25
    with oracle_gate(mixture, "javascript"):
        _, routing = router(torch.randn(3, 32), None, None)
    assert routing.experts_TK.tolist() == [[2, 4]] * 3
    assert routing.weights_TK.tolist() == [[1.0, 0.25]] * 3


def test_a_mixture_without_the_language_s_expert_is_refused(experts: tuple[Path, Path], base_folder: Path) -> None:
    for folder, sentence in ((experts[1], "expert-python, expert-java, expert-cpp"), (base_folder, "without names")):
        model, _ = load_model(folder)
        with (
            pytest.raises(ValueError, match=f"needs an expert called javascript; the model's experts: {sentence}"),
            oracle_gate(model, "javascript"),
        ):
            pass


@pytest.mark.parametrize("router", [None, "softmax", "switch", "sequence"])
def test_losses_are_transformers_own(mixture_folder: Path, points: list[Pair], router: str | None) -> None:
    model, tokenizer = load_model(mixture_folder, router_type=router)
    long = Pair(**{**vars(points[0]), "text": "add up values " * 30, "id": "long"})
    examples = [encode_pair(point, tokenizer) for point in [*points, long]]
    found = reference_losses(model, examples, batch_size=4)
    for loss, example in zip(found, examples, strict=True):
        with torch.inference_mode():
            alone = model(input_ids=torch.tensor([example["input_ids"]]), labels=torch.tensor([example["labels"]])).loss
        assert loss.tokens == sum(label != -100 for label in example["labels"])
        assert loss.nats / loss.tokens == pytest.approx(float(alone), rel=1e-4)


def test_what_lies_behind_the_context_is_left_out(base_folder: Path, points: list[Pair]) -> None:
    model, tokenizer = load_model(base_folder)
    example = encode_pair(points[0], tokenizer)
    prompt = example["labels"].count(-100)
    model.config.max_position_embeddings = prompt + 3
    assert reference_losses(model, [example], batch_size=1)[0].tokens == 3


def test_a_shorter_answer_is_a_prefix(mixture_folder: Path, points: list[Pair]) -> None:
    model, tokenizer = load_model(mixture_folder)
    long, short = (ask(model, tokenizer, "cpp", points, max_new_tokens=length, batch_size=2) for length in (30, 11))
    assert long.texts(tokenizer, 11, []) == short.texts(tokenizer, 11, [])
    assert long.texts(tokenizer, 30, []) != short.texts(tokenizer, 30, [])
    letter = long.texts(tokenizer, 30, [])[0][5]
    assert long.texts(tokenizer, 30, [letter])[0] == long.texts(tokenizer, 30, [])[0].split(letter)[0]
