"""The prompt of base, experts and mixture: one template, or the chat template that the tokenizer brings.

It names the language and nothing else tells a model which language is wanted: the gate has to read it here.
The completion starts right after the prompt and ends with the tokenizer's EOS.
"""

from transformers import PreTrainedTokenizerBase

from .languages import language_title

PROMPT_TEMPLATE = "### {language}\n{text}\n### Code\n"
INSTRUCTION = "Write this in {language}: {text}"  # the user's message, where there is a chat template
# For bases that have no chat template. Its marks are plain text: a new token would need a row of its own in the frozen embedding.
CHAT_TEMPLATE = """{{ bos_token }}{% for message in messages %}\
{% if message['role'] == 'system' %}{{ message['content'] + '\\n' }}\
{% elif message['role'] == 'user' %}{{ ('' if loop.first else '\\n') + '### Instruction\\n' + message['content'] + '\\n' }}\
{% elif message['role'] == 'assistant' %}{{ '### Response\\n' + message['content'] + eos_token }}\
{% else %}{{ raise_exception('the roles are system, user and assistant, not ' + message['role']) }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '### Response\\n' }}{% endif %}"""
FORMATS = ("completion", "instruct")
_CAUSE = 500  # characters of the error's cause


def format_prompt(text: str, lang: str, tokenizer: PreTrainedTokenizerBase | None = None) -> str:
    """The prompt for a task description `text` in the language named `lang` (`ValueError` if it cannot be the name of one).

    A tokenizer with a chat template is asked through it, in one user message; every other, or none, through `PROMPT_TEMPLATE`.
    `ValueError` for a chat template that fails. One that never ends, or fills the memory, is not stopped (SECURITY.md).
    """
    fields = {"language": language_title(lang), "text": " ".join(text.split())}
    if tokenizer is None or not tokenizer.chat_template:
        return PROMPT_TEMPLATE.format(**fields)
    messages = [{"role": "user", "content": INSTRUCTION.format(**fields)}]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # it is a program of whoever wrote the tokenizer: 1 / 0, a name that is not there, recursion
        cause = " ".join(str(error).split())[:_CAUSE]
        said = f"the chat template of the tokenizer {tokenizer.name_or_path} writes no prompt: {type(error).__name__}: {cause}"
        raise ValueError(said) from error


def prompt_template(tokenizer: PreTrainedTokenizerBase | None) -> str:
    """What `format_prompt` fills in, for the records."""
    return str((tokenizer and tokenizer.chat_template) or PROMPT_TEMPLATE)


def set_format(tokenizer: PreTrainedTokenizerBase, kind: str) -> None:
    """Makes `tokenizer` the one of a model that is trained in the format `kind` (of `FORMATS`): with a chat template, or without.

    A chat template of its own is kept for "instruct"; if it does not write BOS, it does from now on: training puts BOS first.
    """
    if kind == "completion":
        tokenizer.chat_template = None
        return
    tokenizer.chat_template = tokenizer.chat_template or CHAT_TEMPLATE
    if tokenizer.bos_token and not format_prompt("", "python", tokenizer).startswith(tokenizer.bos_token):
        tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
