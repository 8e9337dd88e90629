"""The tokenizer of a folder, from its own files alone."""

import shutil
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

_PROBE = "a b\n\U0010ffff"
_CAUSE = 500  # characters of the error's cause: it may quote the whole file
_FILES = (
    "tokenizer*.json",
    "tokenizer.model*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.*",
)


def copy_tokenizer(source: Path, out: Path) -> None:
    """Copies the files of the tokenizer in the folder `source` to the folder `out`, as they are."""
    for path in [path for pattern in _FILES for path in source.glob(pattern) if path.is_file()]:
        shutil.copyfile(path, out / path.name)


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`; ValueError if there is none that can be read. Nothing is downloaded, and none of its code is run."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer(_PROBE)  # only now are some settings of a wrong type an error, such as model_max_length, and an absent unknown token
        return tokenizer
    except BaseException as error:  # no narrower class: `tokenizers` raises bare Exceptions, and Rust's panics, which are none
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        files = ", ".join(sorted(path.name for path in folder.glob("tokenizer*"))) or "none"
        cause = " ".join(str(error).split())[:_CAUSE]
        raise ValueError(f"{folder} has no tokenizer that can be read; its tokenizer files: {files} ({cause})") from error
