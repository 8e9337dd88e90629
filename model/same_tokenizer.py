"""Whether an expert reads text as the base does: a mixture has one tokenizer, the base's, with the prompt of its experts."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .checkpoint import some

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_SPECIAL = ("bos", "eos", "unk", "pad")


def check_same_tokenizer(folder: Path, base: Path, base_tokenizer: PreTrainedTokenizerBase) -> None:
    """ValueError saying what differs between the tokenizers of an expert's `folder`, if it has one, and of its base."""
    if not any((folder / name).is_file() for name in _FILES):
        return
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # no narrower class: `tokenizers` raises bare Exceptions
        raise ValueError(f"{folder} has a tokenizer that cannot be read: {' '.join(str(error).split())}") from error
    if found := differences(base_tokenizer, tokenizer):
        raise ValueError(f"{folder} has another tokenizer than the base {base} (base's -> expert's): {'; '.join(found)}")


def brings_tokenizer(adapter: Path) -> bool:
    return (adapter / "tokenizer_config.json").is_file()


def take_chat_template(tokenizer: PreTrainedTokenizerBase, adapters: list[Path]) -> None:
    """Gives `tokenizer`, the base's, the prompt that `adapters` were trained on: the chat template beside them, or none.

    An adapter that brings no tokenizer says nothing of it. ValueError naming two that were trained on different prompts.
    """
    folders = [folder for folder in adapters if brings_tokenizer(folder)]
    templates = [AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False).chat_template for folder in folders]
    for folder, template in zip(folders, templates, strict=True):
        if template != templates[0]:
            raise ValueError(f"{folders[0]} and {folder} were trained on different prompts (chat templates), but a model has one")
    if templates:
        tokenizer.chat_template = templates[0]


def differences(base: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> list[str]:
    """What differs in vocabulary, special and added tokens.

    A pad token that only one has is no difference: fine-tuning needs one where many bases have none, and nobody attends to it.
    """
    found = []
    ours, theirs = base.get_vocab(), other.get_vocab()
    changed = [token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)]
    if changed:
        changed.sort(key=lambda token: (ours.get(token, len(ours)), theirs.get(token, 0)))
        found.append("tokens " + some([f"{token!r} {_id(ours.get(token))} -> {_id(theirs.get(token))}" for token in changed]))
    for name in _SPECIAL:
        mine, its = (_special(tokenizer, name) for tokenizer in (base, other))
        if mine != its and not (name == "pad" and "none" in (mine, its)):
            found.append(f"{name} {mine} -> {its}")
    added, its_added = ({str(token) for token in tokenizer.added_tokens_decoder.values()} for tokenizer in (base, other))
    for title, tokens in (("the base", added - its_added), ("the expert", its_added - added)):
        if tokens:
            found.append(f"added tokens only in {title}: {some([repr(token) for token in sorted(tokens)])}")
    return found


def _special(tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    token = getattr(tokenizer, f"{name}_token")
    return "none" if token is None else f"{str(token)!r} ({getattr(tokenizer, f'{name}_token_id')})"


def _id(number: int | None) -> str:
    return "absent" if number is None else str(number)
