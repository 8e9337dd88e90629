"""The configuration of `MoEForCausalLM`: Mixtral's, plus how tokens are routed and how experts are stored."""

from typing import Any

from transformers import MixtralConfig

ROUTER_TYPES = ("noisy_topk", "topk", "softmax", "switch", "sequence")
EXPERT_LAYOUTS = ("dense", "lora")
QUANTIZATIONS = (None, "nf4")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


class MoEConfig(MixtralConfig):
    """Mixtral's configuration with routing, expert layout and quantisation.

    Args:
        router_type: `noisy_topk` (noise only while training), `topk` (Mixtral), `softmax` (all experts), `switch` (top-1, un-renormalised),
            `sequence` (one expert in each layer for a whole prompt and its completion).
        router_seed: seed of the routing noise.
        importance_coef, load_coef: weights of Shazeer et al.'s CV² losses (arXiv:1701.06538, eq. 7 and 11), averaged over layers; for
            `noisy_topk`, `softmax` and `sequence`. `topk` and `switch` have Mixtral's `output_router_logits` and `router_aux_loss_coef`.
        router_z_loss_coef: weight of ST-MoE's z-loss (arXiv:2202.08906, eq. 5), averaged over layers, while training.
        expert_layout: `dense` (three matrices for each expert) or `lora` (one shared FFN, and LoRA factors for each expert).
        lora_rank: rank R of the stored factors (the greatest of the experts'; the others are padded with zeros). Only for `lora`.
        attention_experts: projections (of q_proj, k_proj, v_proj, o_proj) in which each expert has LoRA factors; None: attention is shared.
        attention_lora_rank: rank R of these factors.
        num_shared_experts: how many always-on experts come after the routed ones. Each sees every token, outside the gate's choice.
        shared_expert_scale: their weight (1 in DeepSeek-MoE, arXiv:2401.06066; less keeps a composed mixture's outputs near its experts').
        quantization: None, or `nf4` for the expert and attention matrices.
        expert_names: what each routed expert, then each shared one, is called, e.g. its programming language.
    """

    model_type = "moe_experts"
    # Mixtral's plans of parallelism shard matrices that the operators here read whole.
    base_model_tp_plan = None  # type: ignore[assignment]
    base_model_ep_plan = None  # type: ignore[assignment]

    router_type: str = "noisy_topk"
    router_seed: int = 0
    importance_coef: float = 0.01
    load_coef: float = 0.01
    router_z_loss_coef: float = 0.0
    expert_layout: str = "dense"
    lora_rank: int = 0
    attention_experts: list[str] | None = None
    attention_lora_rank: int = 0
    num_shared_experts: int = 0
    shared_expert_scale: float = 1.0
    quantization: str | None = None
    expert_names: list[str] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        _check_choice("router_type", self.router_type, ROUTER_TYPES)
        _check_choice("expert_layout", self.expert_layout, EXPERT_LAYOUTS)
        _check_choice("quantization", self.quantization, QUANTIZATIONS)
        _check_choice("hidden_act", self.hidden_act, ("silu",))
        if not 1 <= self.num_experts_per_tok <= self.num_local_experts:
            raise ValueError(f"num_experts_per_tok is {self.num_experts_per_tok}; it must lie in 1..{self.num_local_experts} (experts)")
        if (self.expert_layout == "lora") != (self.lora_rank > 0):
            raise ValueError(f"lora_rank is {self.lora_rank}, but expert_layout is {self.expert_layout!r}: only the lora layout has a rank")
        for projection in self.attention_experts or ():
            _check_choice("attention_experts", projection, ATTENTION)
        if bool(self.attention_experts) != (self.attention_lora_rank > 0):
            raise ValueError(
                f"attention_lora_rank is {self.attention_lora_rank}, but attention_experts is {self.attention_experts}: one needs the other"
            )
        if self.num_shared_experts < 0:
            raise ValueError(f"num_shared_experts is {self.num_shared_experts}; it must be at least 0")
        if self.expert_names is not None and len(self.expert_names) != self.num_stored_experts:
            raise ValueError(f"expert_names has {len(self.expert_names)} names for {self.num_stored_experts} experts")

    @classmethod
    def of(cls, config: MixtralConfig) -> "MoEConfig":
        """The configuration itself, or Mixtral's as ours."""
        if isinstance(config, cls):
            return config
        return cls.from_dict({**config.to_dict(), "attn_implementation": config._attn_implementation})  # which is not in the dict

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers'; Mixtral's router has no noise."""
        if config_dict.get("model_type") == "mixtral":
            config_dict = {"router_type": "topk", **config_dict, "model_type": cls.model_type}
        return super().from_dict(config_dict, **kwargs)

    @property
    def routed_names(self) -> list[str] | None:
        """The names of the experts that the gate chooses among."""
        return None if self.expert_names is None else self.expert_names[: self.num_local_experts]

    @property
    def num_stored_experts(self) -> int:
        """E of the expert tensors: the routed experts, then the shared ones."""
        return self.num_local_experts + self.num_shared_experts


def _check_choice(field: str, value: str | None, allowed: tuple[str | None, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{field} is {value!r}; allowed: {', '.join(map(str, allowed))}")
