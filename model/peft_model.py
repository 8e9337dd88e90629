"""A PEFT model of a base and an adapter's folder, made of nothing but what `Adapter` has checked."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from .adapters import ADAPTER_CONFIG, Adapter
from .checkpoint import Checkpoint

_CAUSE, _NAMED = 500, 5  # characters of an error's cause; modules that an error names


def with_adapter(model: PreTrainedModel, base: Path, folder: Path, *, trainable: bool = False) -> Any:
    """`model`, which is that of the folder `base`, with the adapter in `folder` beside its weights.

    ValueError if the adapter does not fit the base, or its configuration names other modules or ranks than it has factors of: PEFT drops
    such factors in silence, and a mixture would take them.
    """
    from peft import LoraConfig, PeftModel  # it imports bitsandbytes: seconds that only adapters are worth

    adapter = Adapter(folder)
    adapter.check_base(base, Checkpoint(base))
    named = adapter.config.get("base_model_name_or_path")
    with loading(folder), warnings.catch_warnings():
        config = LoraConfig(**adapter.settings, base_model_name_or_path=named, task_type="CAUSAL_LM")
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)  # PEFT 0.21 asks for it by itself
        warnings.filterwarnings("ignore", message="Found missing adapter keys")  # refused below
        adapted = PeftModel.from_pretrained(model, str(folder), config=config, is_trainable=trainable, local_files_only=True)
        _check_modules(adapted, adapter)
    return adapted


def _check_modules(adapted: Any, adapter: Adapter) -> None:
    """ValueError naming the modules to which the configuration, as PEFT reads it, and the weights give different ranks (0: no factors)."""
    made = {
        name.removeprefix("base_model.model."): module.r["default"]
        for name, module in adapted.named_modules()
        if "default" in getattr(module, "lora_A", ())
    }
    has = {module: adapter.rank_of(module) for module in adapter.modules}
    ranks = {name: (made.get(name, 0), has.get(name, 0)) for name in sorted({*made, *has})}
    wrong = [f"{name} ({of_config} and {of_weights})" for name, (of_config, of_weights) in ranks.items() if of_config != of_weights]
    if wrong:
        more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise ValueError(f"{adapter.folder}: {ADAPTER_CONFIG} and the weights give different ranks to {', '.join(wrong[:_NAMED])}{more}")


@contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Within it any error of a library becomes a ValueError that names `folder`; but not that a device's memory is full."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # no narrower class: what a library raises for a field it did not expect has no bounds
        if isinstance(error, ValueError) and str(folder) in str(error):
            raise
        cause = " ".join(str(error).split())[:_CAUSE]
        raise ValueError(f"{folder} cannot be loaded: {type(error).__name__}: {cause}") from error
