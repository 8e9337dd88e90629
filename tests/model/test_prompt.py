"""The prompt: what is asked with and without a chat template, and that it is the same wherever it is asked."""

import json
import shutil

import pytest
from transformers import AutoTokenizer

from model.edit import main as edit
from model.generate import main as generate
from model.generation import complete, encode_prompts
from model.infill import infill
from model.load import load_model
from model.merge import main as merge
from model.prompt import CHAT_TEMPLATE, INSTRUCTION, PROMPT_TEMPLATE, format_prompt, prompt_template, set_format

NO_BOS = "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}{% endfor %} ="  # as zephyr's, for example
OF_ITS_OWN = "{{ bos_token }}" + NO_BOS


@pytest.fixture
def tokenizer(base):
    return AutoTokenizer.from_pretrained(base)


def message(text: str, title: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": INSTRUCTION.format(language=title, text=text)}]


@pytest.mark.parametrize("given", [None, OF_ITS_OWN, NO_BOS])
def test_apply_chat_template_gives_the_prompt_trained_on(tokenizer, given, tmp_path):
    tokenizer.chat_template = given
    set_format(tokenizer, "instruct")
    tokenizer.save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    rendered = saved.apply_chat_template(message("sum of a list", "C++"), add_generation_prompt=True)["input_ids"]
    assert encode_prompts(tokenizer, [format_prompt("sum  of\na list", "cpp", tokenizer)]) == [rendered]
    assert rendered[0] == saved.bos_token_id and rendered.count(saved.bos_token_id) == 1
    assert prompt_template(saved) == saved.chat_template == {None: CHAT_TEMPLATE}.get(given, OF_ITS_OWN)


def test_a_conversation_in_our_template(tokenizer):
    set_format(tokenizer, "instruct")
    turns = [("system", "be brief"), ("user", "a"), ("assistant", "b"), ("user", "c")]
    text = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in turns], tokenize=False, add_generation_prompt=True
    )
    assert text == "<s>be brief\n\n### Instruction\na\n### Response\nb</s>\n### Instruction\nc\n### Response\n"
    with pytest.raises(Exception, match="the roles are system, user and assistant, not tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": ""}], tokenize=False)


def test_the_completion_format_has_no_chat_template(tokenizer):
    tokenizer.chat_template = OF_ITS_OWN
    set_format(tokenizer, "completion")
    assert format_prompt("a  b", "cpp", tokenizer) == format_prompt("a b", "cpp") == "### C++\na b\n### Code\n"
    assert prompt_template(tokenizer) == PROMPT_TEMPLATE


def test_another_language_is_called_by_its_name():
    assert format_prompt("a", "rust") == "### Rust\na\n### Code\n"
    for name in ("C++", "Rust", "", "../rust", "rust\n"):
        with pytest.raises(ValueError, match="must be one of python, java, javascript, cpp or a name in lower case"):
            format_prompt("a", name)


@pytest.fixture
def instructed(base, adapters, tmp_path):
    """Two adapters with tokenizers of a chat template, as `train.expert --format instruct` leaves them, the second of Rust."""
    folders = []
    for adapter, lang in zip(adapters, ("cpp", "rust"), strict=False):
        folders.append(tmp_path / adapter.name)
        shutil.copytree(adapter, folders[-1])
        tokenizer = AutoTokenizer.from_pretrained(base)
        set_format(tokenizer, "instruct")
        tokenizer.save_pretrained(folders[-1])
        (folders[-1] / "run.json").write_text(json.dumps({"lang": lang}))
    return folders


def test_adapter_and_mixture_are_asked_through_the_template(base, instructed, run_compose, monkeypatch, capsys):
    mixture = run_compose(instructed)
    capsys.readouterr()
    for model, adapter in ((base, instructed[0]), (instructed[0], None), (mixture, None)):
        loaded = load_model(model, adapter)
        assert loaded[1].chat_template == CHAT_TEMPLATE
        prompt = format_prompt("sum", "cpp", loaded[1])
        assert prompt.startswith("<s>### Instruction\nWrite this in C++: sum\n")
        expected = complete(*loaded, [prompt], max_new_tokens=7, batch_size=1, progress=False)[0]
        flags = ["sum", "--model", model, "--lang", "cpp", "--max-new-tokens", 7, *(["--adapter", adapter] if adapter else [])]
        monkeypatch.setattr("sys.argv", ["generate", *map(str, flags)])
        assert generate() == 0 and capsys.readouterr().out.strip() == expected.strip()
    assert load_model(base)[1].chat_template is None


def test_an_expert_composed_by_name_is_asked_by_name(base, instructed, run_compose, monkeypatch, capsys):
    mixture = run_compose(instructed)
    for model, lang, status in ((mixture, "rust", 0), (instructed[1], "rust", 0), (instructed[0], "rust", 2), (base, "rust", 2)):
        monkeypatch.setattr("sys.argv", ["generate", "sum", "--model", str(model), "--lang", lang, "--max-new-tokens", "1"])
        assert generate() == status, (model, lang)
        error = capsys.readouterr().err
        assert status == 0 or "unknown language 'rust'; known: python, java, javascript, cpp" in error


def test_experts_of_different_prompts_do_not_mix(base, adapters, instructed, run_compose, make_adapter, tmp_path, monkeypatch, capsys):
    completion = make_adapter(tmp_path / "completion")
    AutoTokenizer.from_pretrained(base).save_pretrained(completion)
    with pytest.raises(ValueError, match=r"expert-0 and .*completion were trained on different prompts"):
        run_compose([instructed[0], completion])
    monkeypatch.setattr(
        "sys.argv",
        ["edit", str(run_compose(adapters[:2], out="plain")), str(tmp_path / "out"), "--replace", "expert-0", str(instructed[0])],
    )
    assert edit() == 2 and "was trained on another prompt (chat template) than the experts of" in capsys.readouterr().err
    mixture = run_compose([instructed[0], adapters[2]])  # an adapter without a tokenizer says nothing of its prompt
    assert AutoTokenizer.from_pretrained(mixture).chat_template == CHAT_TEMPLATE


def test_a_gap_is_filled_from_a_file(base, tmp_path, monkeypatch, capsys):
    loaded = load_model(base)
    expected = infill(*loaded, "sum", "cpp", "int a = ", ";\n", max_new_tokens=8)
    file = tmp_path / "gap.cpp"
    file.write_text("int a = <FILL>;\n")
    flags = ["sum", "--model", str(base), "--lang", "cpp", "--max-new-tokens", "8", "--infill", str(file)]
    monkeypatch.setattr("sys.argv", ["generate", *flags])
    assert generate() == 0 and capsys.readouterr().out.strip() == expected.strip()
    assert expected != infill(*loaded, "sum", "cpp", "int a = ", ";\n", max_new_tokens=8, spm=True)
    for text, said in (("int a;", "not 0"), ("<FILL><FILL>", "not 2")):
        file.write_text(text)
        assert generate() == 2 and f"must have one <FILL>, where the missing piece belongs, {said}" in capsys.readouterr().err
    file.write_bytes(b"\xff<FILL>")
    assert generate() == 2 and f"{file} is no text in UTF-8" in capsys.readouterr().err
    with file.open("wb") as sparse:
        sparse.truncate(1 << 40)
    assert generate() == 2 and f"{file} has {1 << 40} bytes; a program here has at most" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["generate", "\udcff", *flags[1:-2]])
    assert generate() == 2 and "the description has the lone surrogate U+DCFF" in capsys.readouterr().err


@pytest.mark.parametrize("asked", [{}, {"chat_template": "auto"}, {"chat_template": "{{ 1 }}"}], ids=str)
def test_a_merge_of_adapters_is_asked_as_they_are(base, instructed, tmp_path, monkeypatch, asked):
    config = {"merge_method": "task_arithmetic", "base_model": str(base), **asked}
    models = [{"model": str(folder), "parameters": {"weight": 0.5}} for folder in instructed]
    (tmp_path / "merge.yml").write_text(json.dumps({**config, "models": models}))
    monkeypatch.setattr("sys.argv", ["merge", str(tmp_path / "merge.yml"), str(tmp_path / "merged")])
    assert merge() == 0
    expected = {"{{ 1 }}": "{{ 1 }}"}.get(asked.get("chat_template"), CHAT_TEMPLATE)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == expected


@pytest.mark.parametrize(
    "template", ["{% if %}", "{{ 1 / 0 }}", "{{ x.y.z }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ 'x' * 10**15 }}"]
)
def test_a_chat_template_that_fails_is_a_mistake_of_its_folder(base, make_adapter, tmp_path, monkeypatch, capsys, template):
    folder = shutil.copytree(base, tmp_path / "hostile")
    (folder / "chat_template.jinja").write_text(template)
    monkeypatch.setattr("sys.argv", ["model.generate", "--model", str(folder), "--lang", "cpp", "add"])
    assert generate() == 2
    assert f"the chat template of the tokenizer {folder} writes no prompt: " in capsys.readouterr().err
    adapter = make_adapter(tmp_path / "adapter")
    for file in folder.glob("*to*en*"):
        shutil.copy(file, adapter)
    shutil.copy(folder / "chat_template.jinja", adapter)
    with pytest.raises(ValueError, match=f"the chat template of the tokenizer {adapter} writes no prompt"):
        load_model(base, adapter=adapter)
