import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig

from model.generate import main
from model.generation import WholeTextStreamer, complete, complete_ids, encode_prompts, generate_as_told, pad_left
from model.infill import encode_piece
from model.load import load_model
from model.prompt import format_prompt

PROMPTS = ["x = 1", "sum of all the numbers in a list", "", "for i in (1, 2)"]


@pytest.fixture
def loaded(base):
    return load_model(base)


@torch.no_grad()
def greedy(model, tokenizer, prompt, count):
    """Token by token, alone, without cache or padding."""
    ids = [tokenizer.bos_token_id, *tokenizer.encode(prompt, add_special_tokens=False)]
    start = len(ids)
    while len(ids) - start < count:
        token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        ids.append(token)
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_batches_complete_as_single_prompts_do(loaded, batch_size, capsys):
    expected = [greedy(*loaded, prompt, 20) for prompt in PROMPTS]
    assert complete(*loaded, PROMPTS, max_new_tokens=20, batch_size=batch_size) == expected
    assert "Generating" not in capsys.readouterr().err, "a bar is for a terminal"


def test_mixtures_complete_as_single_prompts_do(adapters, run_compose):
    loaded = load_model(run_compose(adapters, quantize="nf4"))
    expected = [greedy(*loaded, prompt, 12) for prompt in PROMPTS]
    assert complete(*loaded, PROMPTS, max_new_tokens=12, batch_size=4, progress=False) == expected


def test_completion_ends_at_eos(loaded):
    model, tokenizer = loaded
    text = complete(model, tokenizer, PROMPTS[:1], max_new_tokens=20, batch_size=1, progress=False)[0]
    assert len(text) > 3 and text[2] not in text[:2]
    tokenizer.eos_token = text[2]
    assert complete(model, tokenizer, PROMPTS[:1], max_new_tokens=20, batch_size=1, progress=False)[0].rstrip(text[2]) == text[:2]


def test_completion_ends_at_a_stop_text_and_without_padding(loaded):
    model, tokenizer = loaded
    rows = encode_prompts(tokenizer, PROMPTS)
    settings = {"max_new_tokens": 20, "batch_size": 4, "progress": False}
    texts = tokenizer.batch_decode(complete_ids(model, tokenizer, rows, **settings))
    mark = texts[0][2:4]
    for text, ids in zip(texts, complete_ids(model, tokenizer, rows, stop=[mark], **settings), strict=True):
        before, found, _ = text.partition(mark)
        assert tokenizer.decode(ids) == before + found


def test_prompts_are_encoded_as_in_training(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert encode_prompts(tokenizer, ["ab"]) == [[1, *tokenizer.convert_tokens_to_ids(["a", "b"])]]


@pytest.mark.parametrize("behind", ["", "\n"])
def test_streaming_prints_what_decoding_the_whole_gives(metaspace, capsys, behind):
    text = "def f(a):\n    if a:\n        return 'ü'\n" if not behind else " x\n  y"
    ids = encode_piece(metaspace, text) if behind else metaspace(text, add_special_tokens=False)["input_ids"]
    streamer = WholeTextStreamer(metaspace, 3, behind)
    for value in (torch.tensor([[1, 5, 7]]), *map(torch.tensor, ids), torch.tensor(metaspace.eos_token_id)):
        streamer.put(value.reshape(1, -1))
    streamer.end()
    assert capsys.readouterr().out == text + "\n"


def test_the_context_is_the_limit(loaded):
    model, tokenizer = loaded
    long = complete(model, tokenizer, ["a" * 250], max_new_tokens=100, batch_size=1, progress=False)[0]
    assert len(tokenizer.encode(long, add_special_tokens=False)) <= 256 - 251
    with pytest.raises(ValueError, match="a prompt of 301 tokens leaves no room in a context of 256"):
        complete(model, tokenizer, ["a" * 300], max_new_tokens=1, batch_size=1, progress=False)
    with pytest.raises(ValueError, match="the token 64; the model has 64"):
        complete_ids(model, tokenizer, [[1, 63], [1, 64]], max_new_tokens=1, batch_size=1, progress=False)


def test_a_row_has_its_own_room_and_not_the_batches_least(loaded):
    rows = [[1] * length for length in (20, 248, 30, 248)]  # of a context of 256
    settings = {"max_new_tokens": 50, "progress": False}
    alone = [complete_ids(*loaded, [row], batch_size=1, **settings)[0] for row in rows]
    assert len(alone[1]) == 8 and min(len(alone[0]), len(alone[2])) > 8
    assert complete_ids(*loaded, rows, batch_size=4, **settings) == alone


# Each changes what `model.generate` returns, or makes it fail, where the call does not name it.
OF_ANY = {
    **{"num_beams": 3, "no_repeat_ngram_size": 1, "repetition_penalty": 5.0, "encoder_repetition_penalty": 5.0, "guidance_scale": 5.0},
    **{"suppress_tokens": [*range(3, 40)], "begin_suppress_tokens": [*range(3, 40)], "bad_words_ids": [[token] for token in range(3, 40)]},
    **{"sequence_bias": [[[token], -50.0] for token in range(3, 40)], "forced_eos_token_id": 5, "eos_token_id": [*range(3, 40)]},
    **{"exponential_decay_length_penalty": [1, 9.0], "stop_strings": list("abcdefghijklmnopq"), "do_sample": True},
    **{"max_time": 1e-9, "return_dict_in_generate": True},
    **{"prompt_lookup_num_tokens": 2, "penalty_alpha": 0.6, "dola_layers": "low", "watermarking_config": {"bias": 50.0}},
}
OF_SAMPLING = {
    **{"temperature": 9.0, "top_k": 1, "top_p": 0.01, "min_p": 0.9, "typical_p": 0.01},
    **{"epsilon_cutoff": 0.3, "eta_cutoff": 0.9},
}


@torch.inference_mode()
@pytest.mark.parametrize(("name", "temperature"), [*((name, 0.0) for name in OF_ANY), *((name, 0.7) for name in OF_SAMPLING)])
def test_a_checkpoints_own_generation_settings_change_nothing(loaded, name, temperature):
    model, tokenizer = loaded

    def completed():
        torch.manual_seed(4)
        return complete(model, tokenizer, PROMPTS[:2], max_new_tokens=16, batch_size=2, progress=False, temperature=temperature)

    expected = completed()
    own = model.generation_config = GenerationConfig(**{name: {**OF_ANY, **OF_SAMPLING}[name]})
    assert completed() == expected and model.generation_config is own


def test_an_adapters_base_keeps_its_settings(base, adapters):
    """PEFT hands the settings of its model to the base."""
    model, tokenizer = load_model(base, adapters[0], dtype="bfloat16")
    settings = {"max_new_tokens": 20, "batch_size": 4, "progress": False}
    expected, own = complete(model, tokenizer, PROMPTS, **settings), GenerationConfig(no_repeat_ngram_size=1)
    model.get_base_model().generation_config = own
    assert complete(model, tokenizer, PROMPTS, **settings) == expected and model.get_base_model().generation_config is own


@torch.inference_mode()
def test_sampling_is_from_all_tokens(loaded):
    """transformers' default is to sample from the 50 likeliest."""
    model, tokenizer = loaded
    inputs = pad_left(tokenizer, encode_prompts(tokenizer, ["x"]), model.device)
    drawn = generate_as_told(model, tokenizer, inputs, max_new_tokens=1, num_return_sequences=1024, temperature=1e4)
    assert len(set(drawn[:, -1].tolist())) > 50  # of 64


def run_main(monkeypatch, *arguments) -> int:
    monkeypatch.setattr("sys.argv", ["generate", *map(str, arguments)])
    return main()


def test_command_streams_the_completion(base, adapters, monkeypatch, capsys):
    model, tokenizer = load_model(base, adapters[0])
    expected = complete(model, tokenizer, [format_prompt("sum of numbers", "cpp")], max_new_tokens=9, batch_size=1, progress=False)[0]
    flags = ["--model", base, "--adapter", adapters[0], "--lang", "cpp", "--max-new-tokens", 9]
    assert run_main(monkeypatch, "sum of numbers", *flags) == 0
    assert capsys.readouterr().out.strip() == expected.strip()
    sampled = []
    for seed in (1, 1, 2):
        assert run_main(monkeypatch, "sum of numbers", *flags, "--temperature", 2, "--seed", seed) == 0
        sampled.append(capsys.readouterr().out)
    assert sampled[0] == sampled[1] != sampled[2]


def test_a_completion_that_ends_at_once_is_said(base, monkeypatch, capsys):
    model, tokenizer = load_model(base)
    flags = ["--model", base, "--lang", "cpp", "--max-new-tokens", 9]
    assert run_main(monkeypatch, "sum of numbers", *flags) == 0
    assert "ended at once" not in capsys.readouterr().err
    rows = encode_prompts(tokenizer, [format_prompt("sum of numbers", "cpp", tokenizer)])
    first = complete_ids(model, tokenizer, rows, max_new_tokens=1, batch_size=1, progress=False)[0][0]
    tokenizer.add_special_tokens({"eos_token": tokenizer.convert_ids_to_tokens(first)})
    monkeypatch.setattr("model.generate.load_model", lambda *_, **__: (model, tokenizer))
    assert run_main(monkeypatch, "sum of numbers", *flags) == 0
    captured = capsys.readouterr()
    assert captured.out == "\n" and captured.err.startswith("the model ended at once; ")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lang", "cobol"], "unknown language 'cobol'; known: python, java, javascript, cpp"),
        (["--lang", "cpp", "--top-p", "0"], "--top-p must lie in (0, 1]"),
        (["--lang", "cpp", "--adapter", "nowhere"], "nowhere is neither a folder nor a model"),
    ],
)
def test_mistakes_end_with_status_2(base, monkeypatch, capsys, flags, message):
    assert run_main(monkeypatch, "text", "--model", base, *flags) == 2
    assert message in capsys.readouterr().err


def test_command_ends_where_the_context_does(base, monkeypatch, capsys):
    """Of 256 positions."""
    tokenizer = load_model(base)[1]
    length = len(encode_prompts(tokenizer, [format_prompt("", "cpp", tokenizer)])[0])
    flags = ["--model", base, "--lang", "cpp", "--max-new-tokens", 100, "--temperature", 1]
    assert run_main(monkeypatch, "a" * (251 - length), *flags) == 0
    assert len(tokenizer.encode(capsys.readouterr().out.removesuffix("\n"), add_special_tokens=False)) <= 5
    assert run_main(monkeypatch, "a" * (256 - length), *flags) == 2
    assert "a prompt of 256 tokens leaves no room in a context of 256" in capsys.readouterr().err
