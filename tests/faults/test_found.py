"""What the mutations found, one case each: files that were an error without a name, a traceback, a hang or a wrong answer."""

import json
from collections.abc import Callable

import pytest

from tests.faults.reader import Reader
from tests.faults.readers import make_readers


@pytest.fixture(scope="module")
def readers(tmp_path_factory) -> dict[str, Reader]:
    return {reader.name: reader for reader in make_readers(tmp_path_factory.mktemp("readers"))}


def edit(**changes: object) -> Callable[[bytes], bytes]:
    return lambda data: json.dumps({**json.loads(data), **changes}).encode()


def line(**changes: object) -> Callable[[bytes], bytes]:
    return lambda data: data + json.dumps({**json.loads(data.split(b"\n")[0]), **changes}).encode()


def other(was: bytes, now: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data.replace(was, now)


def own_top1(values: list[object]) -> Callable[[bytes], bytes]:
    """Of the only language of an eval.routing run."""

    def change(data: bytes) -> bytes:
        arrays = json.loads(data)
        arrays["languages"]["cpp"]["own_top1"] = values
        return json.dumps(arrays).encode()

    return change


def text(content: str) -> Callable[[bytes], bytes]:
    return lambda _: content.encode()


BOMB = "\n".join(["a0: &a0 [x, x, x, x, x, x, x, x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))])
MERGED = BOMB.replace("[x, x, x, x, x, x, x, x, x]", "{k: v}").replace("[*", "{<<: [*").replace("]", "]}")
PASSTHROUGH, LAYERS = "merge_method: passthrough\nslices:\n{}", "- sources: [{{model: x, layer_range: [0, {}]}}]\n"
FOUND: list[tuple[str, Callable[[bytes], bytes], str]] = [
    # a text a few lines long stood for a terabyte of its own error message
    ("compose's YAML, four_languages.yml", text(f"experts: 1\n{BOMB}\nbase_model: *a11"), "stand for more than 100000 values"),
    ("merge's YAML, merge_ties.yml", text(MERGED), "stand for more than 100000 values"),
    ("study's YAML, study.yml", text("systems: &a [*a]"), "or for themselves"),
    ("study's YAML, study.yml", text("data: " + "[" * 100_000), "more than 50 brackets in each other"),
    ("train's YAML", text("- " * 5000), "is not YAML: maximum recursion depth"),
    ("train's YAML", text("rank: !!int ''"), "is not YAML"),
    ("train's YAML", text("rank: !!bool x"), "is not YAML"),
    ("train's YAML", text("rank: 2001-99-99"), "is not YAML"),
    ("train's YAML", text("x" * 20_000), "must be a mapping"),
    ("train's YAML", text("#" * 300_000), "at most 262144"),
    ("merge's YAML, merge_ties.yml", other(b"0.5", b"9" * 400), "which is not a number"),
    (
        "compose's YAML, four_languages.yml",
        other(b"source_model:", b"residual_scale: %b\n    source_model:" % (b"9" * 400)),
        "residual_scale is 999",
    ),
    ("train's YAML", text(f"checkpointing: {'x' * 14_000}"), "--checkpointing: invalid choice: 'xxx"),
    ("train's YAML", text("weight-decay: .nan"), "--weight-decay is nan; it must be a finite number"),
    # an error of transformers, with no file in it
    ("base's config", edit(rms_norm_eps="1"), "config.json that cannot be read"),
    ("mixture's config", edit(num_experts_per_tok=1 << 64), "a whole number has at most 64 bits"),
    (
        "mixture's config",
        lambda d: edit(hidden_size=7)(d).replace(b'"num_attention_heads"', b'"x"'),
        "no multiple of its 32 attention heads",
    ),
    ("mixture's config", edit(rope_parameters={"rope_type": "default", "rope_theta": 10**400}), "a whole number has at most 64 bits"),
    ("mixture's config", edit(initializer_range=-0.5), "a standard deviation is not negative"),
    ("mixture's config", edit(intermediate_size=1 << 20, num_local_experts=1 << 10), "describes a model of"),
    ("base's config", edit(vocab_size=[0] * 9999), r"vocab_size = \[0, 0"),
    ("mixture's config", edit(text_config={"model_type": "llama"}), "has text_config: a mixture has no model within it"),
    ("mixture's config", edit(model_type="moe_experts", expert_names=["a", "\x1b[2J"]), r"has '.x1b\[2J' among its expert_names"),
    ("mixture's config", edit(rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 0.0}), "infinite frequencies"),
    ("mixture's config", edit(num_labels=10**9), "num_labels = 1000000000; it must be a whole number in"),
    ("mixture's config", edit(return_dict=False), "return_dict = False; it must be true"),
    ("base's config", edit(output_hidden_states="yes"), "output_hidden_states = 'yes'; it must be true or false"),
    ("merge's YAML, merge_ties.yml", text(PASSTHROUGH.format(LAYERS.format(10**9))), "0 <= first < end <= 1024"),
    (
        "merge's YAML, merge_ties.yml",
        text(PASSTHROUGH.format(LAYERS.format(600) * 2)),
        "its slices make 1200 layers; a model has at most 1024",
    ),
    ("generation config", text("{"), "generation_config.json is not JSON"),
    ("generation config", edit(max_new_tokens="x"), "generation_config.json cannot be read"),
    ("generation config", edit(pad_token_id=1 << 64), "a whole number has at most 64 bits"),
    ("study's YAML, study.yml", other(b"limit: 50", b"limit: -0x" + b"f" * 5000), "limit must be a whole number .* 4300 digits"),
    ("study's YAML, study.yml", other(b"limit: 50", b"limit: 0x" + b"f" * 5000), "limit must be a whole number .* 4300 digits"),
    ("generation config", edit(eos_token_id="x"), "eos_token_id = 'x'"),
    ("tokenizer_config.json", edit(model_max_length="x"), "no tokenizer that can be read"),
    ("adapter's config", edit(base_model_name_or_path=5), "base_model_name_or_path = 5"),
    ("adapter's config, loaded", edit(layers_pattern="1"), "cannot be loaded: ValueError: When `layers_pattern`"),
    ("adapter's config", edit(lora_alpha=10**400), "has lora_alpha = 1000"),
    ("index", edit(weight_map={"a": "a" * 300 + ".safetensors"}), "in the same folder"),
    ("index", edit(weight_map={"a": "é" * 200 + ".safetensors"}), "in the same folder"),
    ("index", edit(weight_map={"a": "\ud800.safetensors"}), r"lone surrogate U\+D800"),
    ("NF4 weights", other(b"[2, 32, 64]", b"[2, 64, 64]"), "nf4"),
    # values that no arithmetic recovers from
    ("weights", lambda data: data[:-4] + b"\x80\x7f\x80\x7f", "infinite or not numbers"),
    ("adapter's weights", lambda data: data[:-4] + b"\0\0\xc0\x7f", "infinite or not numbers"),
    ("mixture's weights", lambda data: data[:-4] + b"\0\0\x80\xff", "infinite or not numbers"),
    ("adapter's weights", lambda data: data[:-1536] + b"\xff\xff\x7f\x7f" * 384, "infinite or not numbers"),
    ("tokenizer.json", lambda data: b'"' + data.replace(b'"', b"x") * 9 + b'"', "no tokenizer that can be read"),
    ("tokenizer.json", other(b'"unk_token": "<unk>"', b'"unk_token": "none"'), "no tokenizer that can be read"),
    # a KeyError, a TypeError, a RecursionError
    ("manifest", edit(files={"a" * 300: {"size": 1, "sha256": ""}}), "does not lie in its folder"),
    *(
        ("manifest", edit(files={name: {"size": 1, "sha256": ""}}), "does not lie in its folder")
        for name in ("é" * 200, "a/" * 5000 + "a", "\0")
    ),
    ("manifest", edit(files={"\ud800": {"size": 1, "sha256": ""}}), r"lone surrogate U\+D800"),
    ("manifest", text("{}"), "does not say the size and sha256"),
    ("manifest", edit(files={"../a": {"size": 1, "sha256": ""}}), "does not lie in its folder"),
    ("facts of unfinished work", text("["), "is not JSON"),
    ("gate's rows", text("[" * 100_000), "is not JSON"),
    ("tasks", line(task_id="CPP/9", test=None), "line 4"),
    ("tasks", line(task_id=["x"]), "line 4"),
    ("tasks", lambda data: data + b"\xff", "line 4"),
    ("counts of eval.pass_at_k", text('{"task_id": "t0", "n": 2, "passed": 3}'), "of 2 completions of t0 3 passed"),
    (
        "run.json of eval.codebleu",
        edit(figures={"cpp": {"family": {"n": "x"}}}),
        "figures: cpp: family: n must be a whole number of 64 bits, not 'x'",
    ),
    ("run.json of eval.codebleu", edit(cost={"peak_bytes": 10**400}), "cost: peak_bytes must be a whole number of 64 bits"),
    ("study's YAML, study.yml", other(b"name: base", b"name: " + b"a" * 10_000), r"name is 'aaa.*it names a folder"),
    ("run.json of eval.pass_at_k", edit(sandbox=[]), "sandbox must be an object"),
    ("run.json of eval.pass_at_k", edit(cost=[1]), r"run.json: cost must be an object, not \[1\]"),
    ("run.json of eval.pass_at_k", edit(cost={"generation_seconds": "x"}), "cost: generation_seconds must be a finite number, not 'x'"),
    ("run.json of eval.pass_at_k", edit(cost={"dtype": 5}), "cost: dtype must be a text, not 5"),
    ("run.json of eval.pass_at_k", edit(judging={"programs": 4, "jobs": 2}), "judging lacks seconds"),
    ("run.json of eval.pass_at_k", edit(judging=5), "judging must be an object, not 5"),
    ("samples of eval.codebleu", line(codebleu=float("nan")), "line 5: codebleu must be a finite number, not nan"),
    ("samples of eval.codebleu", line(id="new", kind="a\ud800"), "the lone surrogate U"),
    ("arrays of eval.routing", edit(experts=["cpp"]), r"top1 must be numbers of shape \[1, 1\]"),
    ("arrays of eval.routing", own_top1([0.5] * 100_000 + ["a" * 1_000_000]), r"own_top1 must be numbers of shape \[1\]"),  # 373 GiB
    ("arrays of eval.routing", own_top1([True]), r"own_top1 must be numbers of shape \[1\]"),
    ("arrays of eval.routing", other(b"0.7", b'"1"'), r"top1 must be numbers of shape \[1, 2\]"),
    ("run.json of eval.pass_at_k", other(b'"1":', b'"x":'), "has the key 'x'"),
    ("study.json of eval.study", other(b'"high": 0.5', b'"high": null'), "codebleu has one end of an interval without the other"),
    ("programs of eval.routing", other(b"60", b"60.5, 0.5"), "pairs of an expert and its share"),
    ("programs of eval.routing", edit(programs=[{}]), r"programs\[0\] lacks lang"),
    ("log of training", line(loss="x"), "loss must be a finite number"),
]


@pytest.mark.parametrize(("name", "change", "message"), FOUND, ids=[f"{number}-{name}" for number, (name, *_) in enumerate(FOUND)])
def test_found_once(readers, name, change, message):
    reader = readers[name]
    try:
        reader.victim.write_bytes(change(reader.valid))
        with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
            reader.read()
    finally:
        reader.victim.write_bytes(reader.valid)
    assert str(reader.victim.parent) in str(caught.value) and len(str(caught.value)) < 10_000
