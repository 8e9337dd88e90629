"""Where the parts of a model lie: `device_map` as transformers and accelerate have it."""

from pathlib import Path
from typing import Any

import torch
from accelerate import dispatch_model, infer_auto_device_map, init_empty_weights
from accelerate.utils import CustomDtype, get_balanced_memory
from accelerate.utils.modeling import check_device_map
from transformers import PreTrainedModel
from transformers.integrations.accelerate import check_and_set_device_map

from .quantization import quantized_matrices

Device = str | int | torch.device
DeviceMap = dict[str, Device]  # from a module's name, "" for the whole model, to its device or "disk"


def resolve_device_map(model: PreTrainedModel, wanted: Device | DeviceMap | None, max_memory: dict | None) -> DeviceMap:
    """The device of every part of `model`, whose parameters may be on the meta device.

    `wanted`: a device, a map, or "auto", "balanced", "balanced_low_0" or "sequential", which fill the accelerators, then RAM, then the
    disk, with at most `max_memory` on each. Without an accelerator "auto" is the CPU. ValueError for a map that leaves out a part, names a
    device that this machine lacks, or puts NF4 matrices elsewhere than where they are computed.
    """
    device_map = check_and_set_device_map(wanted) or {"": torch.device("cpu")}
    if isinstance(device_map, str):
        device_map = _infer(model, device_map, max_memory) if torch.accelerator.is_available() or max_memory else {"": torch.device("cpu")}
    check_device_map(model, device_map)
    places = {place if place == "disk" else present_device(place).type for place in device_map.values()}
    if model.config.quantization == "nf4" and ("disk" in places or ("cpu" in places and len(places) > 1)):
        raise ValueError(f"device_map {device_map} offloads a part of the model; NF4 matrices stay on the device that computes with them")
    return device_map


def present_device(name: Device) -> torch.device:
    """The device called `name`, the CPU or an accelerator; ValueError if this machine lacks it."""
    accelerator, count = torch.accelerator.current_accelerator(), torch.accelerator.device_count()
    try:
        device = torch.device(name)
    except RuntimeError:  # no device at all, or a number without an accelerator
        device = torch.device("meta")
    if device.type != "cpu" and (accelerator is None or device.type != accelerator.type or (device.index or 0) >= count):
        found = f"the CPU and {count} {accelerator.type} devices" if accelerator else "the CPU alone"
        raise ValueError(f"there is no device {str(name)!r}: PyTorch finds {found} here")
    return device


def _infer(model: PreTrainedModel, strategy: str, max_memory: dict | None) -> DeviceMap:
    """By size. NF4 matrices are absent until they are loaded, so the sizes are those of a dense twin whose matrices count 4 bits."""
    config = type(model.config).from_dict({**model.config.to_dict(), "quantization": None})
    with init_empty_weights():
        twin = type(model)._from_config(config, dtype=model.dtype)
    twin.tie_weights()
    sizes: dict[str, Any] = {matrix.full_name: CustomDtype.INT4 for matrix in quantized_matrices(model)}
    blocks = model._no_split_modules
    if strategy != "sequential":
        low_zero = strategy == "balanced_low_0"
        max_memory = get_balanced_memory(
            twin, max_memory=max_memory, no_split_module_classes=blocks, special_dtypes=sizes, low_zero=low_zero
        )
    device_map: DeviceMap = infer_auto_device_map(twin, max_memory=max_memory, no_split_module_classes=blocks, special_dtypes=sizes)
    return device_map


def device_of(name: str, device_map: DeviceMap) -> torch.device:
    """Where the tensor called `name` is to be loaded; RAM for what `dispatch` will put on the disk."""
    wanted = name
    while name not in device_map:
        if not name:
            raise ValueError(f"device_map {device_map} says nothing of {wanted}")
        name = name.rpartition(".")[0]
    return torch.device("cpu" if device_map[name] == "disk" else device_map[name])


def dispatch(model: Any, device_map: DeviceMap, offload_folder: str | Path | None) -> None:
    """Lets each part of a loaded model compute where `device_map` says, with accelerate's hooks where there are several devices."""
    places = list(dict.fromkeys(device_map.values()))
    if set(map(str, places)) != {"cpu"}:  # transformers takes a part on the CPU for offloaded, and warns when such a model is saved
        model.hf_device_map = device_map
    if len(places) == 1 and places != ["disk"]:
        model.to(torch.device(places[0]))
    else:
        dispatch_model(model, device_map, offload_dir=offload_folder, skip_keys=model._skip_keys_device_placement)
