"""The one prompt template of base, experts and mixture.

It names the language and nothing else tells a model which language is wanted: the gate has to read it here.
The completion starts right after the last newline and ends with the tokenizer's EOS.
"""

from .languages import get_language

PROMPT_TEMPLATE = "### {language}\n{text}\n### Code\n"


def format_prompt(text: str, lang: str) -> str:
    """The prompt for a task description `text` in the language named `lang` (`ValueError` if unknown)."""
    return PROMPT_TEMPLATE.format(language=get_language(lang).title, text=" ".join(text.split()))
