"""Token ids: where the loss starts, where a program ends, and what padding hides."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from model.generation import encode_prompts
from model.prompt import format_prompt
from train.data import Pair
from train.data.prompts import IGNORED, collate, encode_pair, encode_pairs

PAIR = Pair("Sum of ### Code\n a list", "### Code\nint f() {}\n", "cpp", "1", "g", "")


def tokenizer(bos: str | None = "<s>", pad: str = "</s>") -> PreTrainedTokenizerFast:
    """Byte-level BPE, which would merge across the boundary of prompt and completion if it saw them in one piece."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    texts = [format_prompt(PAIR.text, "cpp") + PAIR.code, "\n\n\n" * 50, "### Code\n\n    int"] * 20
    core.train_from_iterator(
        texts, trainers.BpeTrainer(special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=bos, eos_token="</s>", pad_token=pad)


def test_loss_on_the_completion_and_its_end_alone() -> None:
    tokens = tokenizer()
    example = encode_pair(PAIR, tokens)
    start = example["labels"].count(IGNORED)
    assert example["labels"][:start] == [IGNORED] * start
    assert example["labels"][start:] == example["input_ids"][start:]
    assert example["input_ids"][0] == tokens.bos_token_id and example["input_ids"][-1] == tokens.eos_token_id
    assert tokens.decode(example["input_ids"][1:start]) == format_prompt(PAIR.text, "cpp")
    assert tokens.decode(example["input_ids"][start:-1]) == PAIR.code
    assert example["input_ids"][:start] == encode_prompts(tokens, [format_prompt(PAIR.text, "cpp")])[0]


def test_boundary_is_a_token_boundary_even_where_merges_cross_it() -> None:
    tokens = tokenizer()
    pair = Pair("a", "\n\nint x;\n", "cpp", "1", "g", "")
    joint = tokens(format_prompt(pair.text, "cpp") + pair.code, add_special_tokens=False)["input_ids"]
    example = encode_pair(pair, tokens)
    assert example["input_ids"][1:-1] != joint  # in one piece, one token would hold the last of the prompt and the first of the code
    assert tokens.decode([label for label in example["labels"] if label != IGNORED][:-1]) == pair.code


def test_tokenizers_without_bos_or_eos() -> None:
    assert encode_pair(PAIR, tokenizer(bos=None))["input_ids"] == encode_pair(PAIR, tokenizer())["input_ids"][1:]
    tokens = tokenizer()
    tokens.eos_token = None
    with pytest.raises(ValueError, match="no EOS token"):
        encode_pair(PAIR, tokens)


def test_long_pairs_are_dropped_and_counted_never_cut() -> None:
    tokens = tokenizer()
    whole = len(encode_pair(PAIR, tokens)["input_ids"])
    prompt = len(encode_prompts(tokens, [format_prompt(PAIR.text, "cpp")])[0])
    long_text = Pair("no room " * 100, "x", "cpp", "2", "g", "")
    examples, dropped = encode_pairs([PAIR, long_text], tokens, whole)
    assert len(examples) == 1 and dropped == {"prompt fills the length": 1, "completion over the length": 0}
    assert encode_pairs([PAIR], tokens, whole - 1) == ([], {"prompt fills the length": 0, "completion over the length": 1})
    assert encode_pairs([PAIR], tokens, prompt) == ([], {"prompt fills the length": 1, "completion over the length": 0})


def test_collate_masks_by_length_though_padding_is_the_end() -> None:
    tokens = tokenizer()
    short, long = (encode_pair(Pair("a", code, "cpp", "1", "g", ""), tokens) for code in ("int x;", PAIR.code))
    batch = collate([short, long], tokens.pad_token_id)
    assert tokens.pad_token_id == tokens.eos_token_id
    length = len(short["input_ids"])
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape == (2, len(long["input_ids"]))
    assert batch["attention_mask"].sum(1).tolist() == [length, len(long["input_ids"])]
    assert batch["labels"][0, length - 1] == tokens.eos_token_id and (batch["labels"][0, length:] == IGNORED).all()
    assert batch["input_ids"][0, :length].tolist() == short["input_ids"] and (batch["input_ids"][0, length:] == tokens.pad_token_id).all()


def test_loss_of_a_batch_is_that_of_its_rows() -> None:
    """transformers' own loss on a padded batch is the mean over the label tokens of the rows by themselves."""
    tokens = tokenizer()
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mistral", vocab_size=len(tokens), **shape)).eval()
    examples = [encode_pair(Pair("a", code, "cpp", "1", "g", ""), tokens) for code in ("int x;", PAIR.code)]
    sums, counts = [], []
    for example in examples:
        counts.append(sum(label != IGNORED for label in example["labels"]))
        sums.append(model(**collate([example], tokens.pad_token_id)).loss.item() * counts[-1])
    assert model(**collate(examples, tokens.pad_token_id)).loss.item() == pytest.approx(sum(sums) / sum(counts), rel=1e-5)
