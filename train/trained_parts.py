"""Which parameters of a mixture learn, by their names, and in which dtype."""

from torch import nn

from model import MoEConfig, MoEForCausalLM

from .plan_models import mixture

GATE, FACTORS = ".gate.", "lora_"  # in the names of Wg and Wnoise, and of the experts' factors
TRAINED = {"gate": (GATE,), "lora": (FACTORS,), "gate+lora": (GATE, FACTORS)}


def trained_parts(train: str, *, noisy: bool) -> tuple[str, ...]:
    """Parts of the names of what learns. Without noise Wnoise has no gradient, for which several processes would wait."""
    return tuple(f"{GATE}weight" if part == GATE and not noisy else part for part in TRAINED[train])


def freeze_all_but(model: nn.Module, parts: tuple[str, ...]) -> nn.Module:
    """The model, with a gradient for the parameters whose name holds one of `parts`, in fp32; `ValueError` naming a part that none has.

    In bf16, which has 8 bits, a step below 1/256 of a weight would be rounded away.
    """
    for part in parts:
        if not any(part in name for name, _ in model.named_parameters()):
            raise ValueError(f"the mixture has no parameters named *{part}* to train: is it of the lora layout?")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in parts))
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def to_stored_dtype(model: MoEForCausalLM) -> None:
    """Puts what `freeze_all_but` made fp32 back into the model's dtype."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(model.dtype)


def planned_mixture(config: MoEConfig, bf16: bool, checkpointing: bool, parts: tuple[str, ...]) -> nn.Module:
    """What a plan makes of a mixture's configuration: these parts of it learn."""
    return freeze_all_but(mixture(config, bf16, checkpointing), parts)
