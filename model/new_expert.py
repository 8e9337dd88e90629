"""The expert that `model.edit` puts into a finished mixture, opened and checked against it."""

from pathlib import Path

from .adapters import BASE_FACT, Adapter, base_fact, base_fingerprint, is_adapter
from .checkpoint import Checkpoint, model_folder
from .configuration_moe import MoEConfig
from .same_tokenizer import check_same_tokenizer, take_chat_template
from .sources import ExpertSource, open_source
from .tokenizer import read_tokenizer


def open_new_expert(text: str, config: MoEConfig, folder: Path, base: str | None) -> ExpertSource | Adapter:
    """The new expert of the mixture in `folder`; in the layout `lora` an adapter of the mixture's base, whose weights need not be there."""
    trained_on = base_fact(folder).get(BASE_FACT)
    tokenizer = read_tokenizer(folder)
    place = model_folder(text.rpartition("+")[2])
    check_same_tokenizer(place, folder, tokenizer)
    asked = tokenizer.chat_template
    take_chat_template(tokenizer, [place] if is_adapter(place) else [])
    if tokenizer.chat_template != asked:
        raise ValueError(f"{place} was trained on another prompt (chat template) than the experts of {folder}")
    if config.expert_layout == "lora":
        place = model_folder(text)
        if not is_adapter(place):
            raise ValueError(f"{place} is no adapter; the experts of a mixture of the lora layout are adapters of its base")
        adapter = Adapter(place)
        adapter.check_layers_only()
        adapter.check_factors()
        _check_shapes(adapter, config)
        if adapter.run.get(BASE_FACT, trained_on) != trained_on and trained_on is not None:
            raise ValueError(f"{place} was trained on another base than the mixture's: their fingerprints differ")
        return adapter
    if base is None:
        raise ValueError("a mixture of the dense layout does not hold its base: give it as --base, to check the new expert against it")
    base_folder = model_folder(base)
    base_weights = Checkpoint(base_folder)
    if trained_on is not None and base_fingerprint(base_folder, base_weights) != trained_on:
        raise ValueError(f"{base_folder} is not the base of {folder}: their fingerprints differ")
    return open_source(text, base_folder, base_weights, Path())


def _check_shapes(adapter: Adapter, config: MoEConfig) -> None:
    """ValueError naming the first matrix of the adapter that the mixture has not, or has in another shape."""
    width, hidden = config.hidden_size, config.intermediate_size
    head = config.head_dim or width // config.num_attention_heads
    q, kv = config.num_attention_heads * head, config.num_key_value_heads * head
    shapes = {"gate_proj": (hidden, width), "up_proj": (hidden, width), "down_proj": (width, hidden)}
    shapes |= {"q_proj": (q, width), "k_proj": (kv, width), "v_proj": (kv, width), "o_proj": (width, q)}
    for module in adapter.modules:
        _, _, layer, _, projection = module.split(".")
        if int(layer) >= config.num_hidden_layers:
            raise ValueError(f"{adapter.folder} changes {module}, but the mixture has {config.num_hidden_layers} layers")
        if adapter.shape(module) != shapes[projection]:
            found, expected = list(adapter.shape(module)), list(shapes[projection])
            raise ValueError(f"{adapter.folder} changes {module} as a matrix of {found}, but in the mixture it is {expected}")
