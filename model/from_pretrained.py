"""`from_pretrained`: strict, streaming, from any Mixtral checkpoint or one of ours (`conversion.py`), onto one device or several."""

from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import MixtralConfig, PreTrainedConfig
from transformers.models.mixtral.modeling_mixtral import MixtralPreTrainedModel

from .adapters import base_name, is_adapter
from .checkpoint import Checkpoint, is_tied, model_folder, parse_dtype, stored_dtype
from .config_file import generation_config, moe_config, read_config
from .configuration_moe import MoEConfig
from .conversion import load_weights, stored_quantization
from .devices import Device, DeviceMap, device_of, dispatch, resolve_device_map
from .saving import check_not_interrupted

# what Auto classes, pipelines and `transformers serve` hand on; everything here is local, so none of it has an effect
_WITHOUT_EFFECT = {"_from_auto", "_commit_hash", "trust_remote_code", "force_download", "local_files_only", "proxies", "token"}
_WITHOUT_EFFECT |= {"use_safetensors", "code_revision", "low_cpu_mem_usage", "_from_pipeline", "tqdm_class", "weights_only"}
# transformers' own keywords for what is not done here: None, False or "" asks for nothing
_UNLESS_ASKED = {"subfolder", "variant", "gguf_file", "state_dict", "key_mapping", "generation_config"}
_UNLESS_ASKED |= {"quantization_config", "load_in_4bit", "load_in_8bit", "ignore_mismatched_sizes", "offload_buffers"}
_UNLESS_ASKED |= {"tp_plan", "tp_size", "device_mesh", "distributed_config", "experts_implementation", "use_kernels", "kernel_config"}
_UNLESS_ASKED |= {"allow_all_kernels", "fusion_config", "disable_mmap", "from_tf", "from_flax", "mirror", "offload_state_dict"}


class StrictLoading(MixtralPreTrainedModel):
    """What `MoEModel` and `MoEForCausalLM` are loaded by."""

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        config: MoEConfig | MixtralConfig | str | Path | None = None,
        dtype: torch.dtype | str | None = "auto",
        quantize: str | None = None,
        device_map: Device | DeviceMap | None = None,
        max_memory: dict | None = None,
        offload_folder: str | Path | None = None,
        attn_implementation: str | None = None,
        cache_dir: str | Path | None = None,
        revision: str | None = None,
        precision: str = "exact",
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Loads a folder, or a model in the hub's local cache (`cache_dir`, `revision`): any Mixtral checkpoint, or one of ours.

        Of a PEFT adapter's folder it is the base that the adapter names, with the adapter. `config`: in place of the stored one, or the
        folder that it is in. `dtype` "auto" or None is the config's, or else the checkpoint's.
        `quantize`: "nf4" quantises while loading, "none" dequantises, None leaves the experts as they are stored.
        `precision` as in `set_precision`; it is not stored. `device_map`, `max_memory` and `offload_folder` as in transformers; see
        `devices.resolve_device_map`. Other keyword arguments override fields of the config, e.g. `router_type="noisy_topk"` (Wnoise
        is zero where the stored router has none). ValueError names the tensors that do not fit, so the missing, unexpected and mismatched
        keys of `output_loading_info` are empty.
        """
        if isinstance(config, PreTrainedConfig):
            check_not_interrupted(Path(pretrained_model_name_or_path), config)
        elif config is not None:
            config = resolve_config(model_folder(config, cache_dir=cache_dir), None, {})
        adapter = (kwargs.pop("adapter_kwargs", None) or {}).get("_adapter_model_path")
        folder = model_folder(pretrained_model_name_or_path, cache_dir=cache_dir, revision=revision)
        if is_adapter(folder):
            pretrained_model_name_or_path, adapter = base_name(folder), folder
            folder = model_folder(pretrained_model_name_or_path, cache_dir=cache_dir)
        stored = read_config(folder)
        is_quiet = stored.get("model_type") == "mixtral" or stored.get("router_type", "noisy_topk") != "noisy_topk"
        dtype = kwargs.pop("torch_dtype", dtype) or "auto"  # its name before transformers 5
        if quantize not in (None, "nf4", "none"):
            raise ValueError(f"quantize is {quantize!r}; allowed: nf4, none")
        changes = {} if quantize is None else {"quantization": None if quantize == "none" else quantize}
        changes |= fields_among(kwargs)
        if config is not None:
            attn_implementation = attn_implementation or config._attn_implementation  # a config's dict does not hold it
        config = resolve_config(folder, config, changes)
        checkpoint = Checkpoint(folder)
        config.tie_word_embeddings = is_tied(checkpoint, config.tie_word_embeddings)
        _check_size(config, checkpoint)
        model = _build(cls, config, (config.dtype or stored_dtype(checkpoint)) if dtype == "auto" else dtype, attn_implementation)
        devices = resolve_device_map(model, device_map, max_memory)
        load_weights(model, checkpoint, lambda name: device_of(name, devices), optional=".noise_weight" if is_quiet else None)
        model.tie_weights()
        model.name_or_path = config.name_or_path = str(pretrained_model_name_or_path)
        if model.can_generate():
            model.generation_config = generation_config(folder)
        dispatch(model.eval().set_precision(precision), devices, offload_folder)
        if adapter is not None:
            model.load_adapter(str(adapter))
        info: dict[str, Any] = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}
        return (model, info) if output_loading_info else model


def fields_among(keywords: dict[str, Any]) -> dict[str, Any]:
    """The fields of the configuration among further keywords of `from_pretrained`, as Mixtral's has them.

    ValueError for a keyword of transformers that asks for what is not done here; TypeError for one that nobody knows.
    """
    known, fields, unknown = MoEConfig(), {}, []
    for name, value in keywords.items():
        if name in _UNLESS_ASKED:
            if value:
                hint = ' (quantize="nf4" quantises)' if name in ("quantization_config", "load_in_4bit") else ""
                raise ValueError(f"from_pretrained does not support {name}={str(value)[:100]!r}{hint}")
        elif hasattr(known, name) and not name.startswith("_") and not callable(getattr(known, name)):
            fields[MoEConfig.attribute_map.get(name, name)] = value
        elif name not in _WITHOUT_EFFECT:
            unknown.append(name)
    if unknown:
        raise TypeError(f"from_pretrained got unknown arguments: {', '.join(unknown)}")
    return fields


def _check_size(config: MoEConfig, checkpoint: Checkpoint) -> None:
    """ValueError as of `Checkpoint.check_size`, before `_build` asks for the memory of every parameter, if only for a moment."""
    from .modeling_moe import MoEForCausalLM  # which imports this module; a subclass's constructor may want values

    with torch.device("meta"):
        checkpoint.check_size(MoEForCausalLM(config).num_parameters())


def _build(cls: Any, config: MoEConfig, dtype: torch.dtype | str, attn_implementation: str | None) -> Any:
    """The model with its parameters on the meta device."""
    with init_empty_weights():
        return cls._from_config(config, dtype=parse_dtype(dtype), attn_implementation=attn_implementation)


def resolve_config(folder: Path, given: MixtralConfig | None, changes: dict[str, Any]) -> MoEConfig:
    """The given configuration or the folder's, with some fields changed; Mixtral's becomes ours (`MoEConfig.from_dict`)."""
    settings = read_config(folder) if given is None else given.to_dict()
    kind = settings.get("model_type")
    if kind not in (MoEConfig.model_type, "mixtral"):
        raise ValueError(f"{folder} is a {kind!r} model; expected {MoEConfig.model_type!r} or 'mixtral'")
    if stored := settings.pop("quantization_config", None):  # a Mixtral whose matrices another program quantised
        method = stored.get("quant_method") if isinstance(stored, dict) else stored
        if method not in ("nf4_experts", "bitsandbytes"):
            raise ValueError(f"{folder} is quantised by {method!r}; NF4 of bitsandbytes is read")
        if "quantization" not in changes:
            settings["quantization"] = stored_quantization(Checkpoint(folder))
    return moe_config({**settings, **changes}, folder)
