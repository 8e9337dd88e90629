"""The one loader that every command uses: a plain base, a base with a PEFT adapter, or a mixture."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .adapters import Adapter, base_fingerprint, base_name, is_adapter
from .checkpoint import GENERATION, Checkpoint, model_folder, parse_dtype
from .config_file import generation_config, model_config, read_config
from .configuration_moe import MoEConfig
from .devices import present_device
from .from_pretrained import resolve_config
from .modeling_moe import MoEForCausalLM
from .peft_model import loading, with_adapter
from .same_tokenizer import take_chat_template
from .tokenizer import read_tokenizer

_MIXTURES = (MoEConfig.model_type, "mixtral")


def load_model(
    path: str | Path,
    adapter: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    precision: str = "exact",
    router_type: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer of a folder, in evaluation mode.

    `device`: default CUDA if there is one. `dtype`: default as stored. `precision`: see `MoEForCausalLM.set_precision`; a base and its
    adapters have none but `exact`. `router_type`: of a mixture; default as stored.

    `path`: any causal language model of transformers, a mixture (Mixtral's or ours), or a PEFT adapter, whose base is then found by name.
    `adapter`: a PEFT adapter on `path`. In fp32 it is merged; otherwise it stays beside the weights, as merging would round it off.
    Only safetensors are read and no code of a checkpoint is run. FileNotFoundError or ValueError says what is wrong.
    """
    folder = model_folder(path)
    if is_adapter(folder):
        if adapter is not None:
            raise ValueError(f"{folder} is an adapter, so it cannot carry the adapter {adapter}")
        folder, adapter = base_of(folder), folder
    device = present_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    chosen = None if dtype is None else parse_dtype(dtype)
    kind = read_config(folder).get("model_type")
    if kind not in (*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *_MIXTURES):
        raise ValueError(f"{folder} is a {kind!r} model, of which transformers has no causal language model")
    if kind in _MIXTURES and adapter is not None:
        raise ValueError(f"{folder} is a mixture; the adapter {adapter} belongs on its base")
    if kind not in _MIXTURES and precision != "exact":
        raise ValueError(f"precision {precision!r} is for mixtures; {folder} is a {kind} model, which transformers computes")
    if kind in _MIXTURES:  # before the tokenizer's errors, which would tell of a wrong config too
        resolve_config(folder, None, {})
    else:
        model_config(folder)
    tokenizer = load_tokenizer(folder, adapter)
    if kind in _MIXTURES:
        changes: dict[str, Any] = {} if router_type is None else {"router_type": router_type}
        model: Any = MoEForCausalLM.from_pretrained(path, dtype=chosen or "auto", device_map=device, precision=precision, **changes)
    else:
        model = _load_dense(folder, device, chosen)
    if adapter is not None:
        model = _add_adapter(model, folder, model_folder(adapter))
        model.name_or_path = str(adapter)  # an error in what it computes is of the adapter, not of its base
    return model.eval(), tokenizer


def load_tokenizer(path: str | Path, adapter: str | Path | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer that `load_model` gives: the base's, with the prompt that the adapter was trained on."""
    folder = model_folder(path)
    if is_adapter(folder):
        folder, adapter = base_of(folder), folder
    tokenizer = read_tokenizer(folder)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if adapter is not None:
        take_chat_template(tokenizer, [model_folder(adapter)])
    return tokenizer


def base_of(adapter: Path) -> Path:
    """The folder of the base that an adapter names; ValueError if it names none."""
    return model_folder(base_name(Adapter(adapter).folder))


def model_fingerprint(path: str | Path, adapter: str | Path | None = None) -> str:
    """SHA-256 by which what `load_model` loads is known again, cheap at any size (`base_fingerprint`)."""
    folders = [model_folder(name) for name in (path, adapter) if name is not None]
    if is_adapter(folders[0]):
        folders = [base_of(folders[0]), *folders]
    parts = [Adapter(folder).fingerprint if is_adapter(folder) else base_fingerprint(folder) for folder in folders]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _load_dense(folder: Path, device: torch.device, dtype: torch.dtype | None) -> PreTrainedModel:
    weights = Checkpoint(folder)
    weights.check_values()  # its errors name the file; transformers' do not
    _check_size(folder, weights)
    if (folder / GENERATION).is_file():
        generation_config(folder)
    with loading(folder):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype or "auto",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
        )
    model, info = loaded
    wrong_shape = {name for name, *_ in info["mismatched_keys"]}
    for title, names in (("missing", info["missing_keys"]), ("unexpected", info["unexpected_keys"]), ("wrongly shaped", wrong_shape)):
        if names:
            raise ValueError(f"{folder} has {title} keys: {', '.join(sorted(names)[:5])}")
    return model.to(device)


def _check_size(folder: Path, weights: Checkpoint) -> None:
    """ValueError if the configuration is of more values than the weights can be: transformers would make them up."""
    config = model_config(folder)
    with loading(folder), torch.device("meta"):
        described = AutoModelForCausalLM.from_config(config, trust_remote_code=False).num_parameters()
    weights.check_size(described)


def _add_adapter(model: PreTrainedModel, base: Path, folder: Path) -> Any:
    adapted = with_adapter(model, base, folder)
    return adapted.merge_and_unload() if model.dtype == torch.float32 else adapted
