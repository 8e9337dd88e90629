"""`MoEForCausalLM`: transformers' Mixtral with our mixture block in place of theirs.

Attention, norms, rotary embedding, masks, cache and generation are transformers'. Ours are the router (`routers.py`), the experts
(`experts.py`), the losses of Shazeer et al., and loading, which is strict and knows NF4 (`conversion.py`).

Shapes: B batch, S sequence, T = B·S tokens, E experts, D model width, V vocabulary.
"""

from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MoeCausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.mixtral.modeling_mixtral import (
    MixtralAttention,
    MixtralModel,
    MixtralPreTrainedModel,
    MixtralRMSNorm,
    MixtralRotaryEmbedding,
)
from transformers.utils import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder

from moe_kernels.backend import precision_code

from .checkpoint import Checkpoint, model_folder, parse_dtype
from .config_file import moe_config, read_config
from .configuration_moe import MoEConfig
from .conversion import load_weights
from .experts import DenseExperts, LoraExperts
from .export import export_mixtral
from .quantization import MatrixModule, NF4Linear
from .routers import MoERouter
from .saving import check_not_interrupted, save_model

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


class MoEBlock(nn.Module):
    """Router and experts of one layer."""

    def __init__(self, config: MoEConfig, layer_idx: int) -> None:
        super().__init__()
        self.gate = MoERouter(config, layer_idx)
        self.experts = LoraExperts(config) if config.expert_layout == "lora" else DenseExperts(config)

    def forward(self, hidden_BSD: Tensor, token_mask_BS: Tensor | None, router_step: int) -> Tensor:
        x_TD = hidden_BSD.reshape(-1, hidden_BSD.shape[-1])
        token_mask_T = None if token_mask_BS is None else token_mask_BS.reshape(-1)
        _, _, routing = self.gate(x_TD, token_mask_T, router_step)
        return self.experts(x_TD, routing).view_as(hidden_BSD)


class MoEDecoderLayer(GradientCheckpointingLayer):
    """Mixtral's decoder layer around a `MoEBlock`."""

    def __init__(self, config: MoEConfig, layer_idx: int) -> None:
        super().__init__()
        self.hidden_size = config.hidden_size
        self.self_attn = MixtralAttention(config, layer_idx)
        if config.quantization == "nf4":
            for name in ATTENTION:
                linear = getattr(self.self_attn, name)
                setattr(self.self_attn, name, NF4Linear(linear.in_features, linear.out_features))
        self.mlp = MoEBlock(config, layer_idx)
        self.input_layernorm = MixtralRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = MixtralRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states: Tensor, token_mask: Tensor | None = None, router_step: int = 0, **attention_arguments: Any) -> Tensor:
        """`router_step` is an argument, not state, so that a checkpointed recompute draws the same noise."""
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **attention_arguments)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states), token_mask, router_step)


class MoEPreTrainedModel(MixtralPreTrainedModel):
    config: MoEConfig
    config_class = MoEConfig
    _no_split_modules = ["MoEDecoderLayer"]  # noqa: RUF012
    _can_record_outputs = {  # noqa: RUF012
        "router_logits": OutputRecorder(MoERouter, index=0),
        "router_losses": OutputRecorder(MoERouter, index=1),
        "hidden_states": MoEDecoderLayer,
        "attentions": MixtralAttention,
    }

    def save_pretrained(self, save_directory: str | Path, is_main_process: bool = True, **options: Any) -> None:  # type: ignore[override]
        """As transformers', with its options. Killed at any point, it leaves the old checkpoint or the new one, and other files alone.

        OSError or SafetensorError on a full disk, and then nothing has changed.
        """
        save_model(super().save_pretrained, Path(save_directory), is_main_process=is_main_process, **options)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if not isinstance(module, MoERouter | DenseExperts | LoraExperts):
            return
        for name, parameter in module.named_parameters(recurse=False):
            if name == "noise_weight" or name.endswith("lora_B"):
                init.zeros_(parameter)
            else:
                init.normal_(parameter, mean=0.0, std=self.config.initializer_range)


class MoEModel(MoEPreTrainedModel, MixtralModel):
    """Mixtral's decoder stack of `MoEDecoderLayer`s; `forward` is Mixtral's."""

    def __init__(self, config: MoEConfig) -> None:
        MixtralPreTrainedModel.__init__(self, config)
        self.padding_idx, self.vocab_size = config.pad_token_id, config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(MoEDecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = MixtralRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = MixtralRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()


class MoEForCausalLM(MoEPreTrainedModel, GenerationMixin):
    """A causal language model whose FFNs are mixtures of experts; `MoEConfig` has the choices.

    The gate is computed in fp32 whatever the dtype, so in bf16 a token whose experts nearly tie may go elsewhere than in Mixtral.

    A quantised model has its NF4 matrices only after loading: `from_pretrained` or `load_state_dict`.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: MoEConfig) -> None:
        super().__init__(config)
        self.model = MoEModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._router_step = 0
        self.post_init()

    def set_router_step(self, step: int) -> None:
        """The step that the next training forward draws its noise from; each forward then takes the next one.

        The noise depends on `config.router_seed`, the layer and this number only, so a resumed run draws what an unbroken run draws.
        """
        self._router_step = step

    def set_precision(self, precision: str) -> "MoEForCausalLM":
        """How products with NF4 are computed on a CPU: one of `moe_kernels.backend.PRECISIONS`, of which only `exact` can be trained in.

        `ValueError` for an unknown name, or for one that this machine or this model's device does not have.
        """
        precision_code(precision, self.lm_head.weight, training=False)
        for module in self.modules():
            if isinstance(module, MatrixModule):
                module.precision = precision
        return self

    def export_mixtral(self, out: str | Path, dtype: torch.dtype = torch.bfloat16) -> None:
        """Writes the folder `out` as plain Mixtral; see `export.export_mixtral`."""
        export_mixtral(self, Path(out), dtype)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_router_logits: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast:
        """As `MixtralForCausalLM.forward`, except for the auxiliary loss.

        `aux_loss` is importance_coef · CV²(importance) + load_coef · CV²(load), the mean over layers, over the tokens that
        `attention_mask` [B, S] keeps. It is computed while training or with `output_router_logits`, and is part of `loss` only while
        training, so that the loss of an evaluation is the language model's alone; there it weighs as much as this micro-batch's share
        of `num_items_in_batch`, if Trainer gives that. `router_logits`: clean logits [T, E] of each layer.
        """
        wants_logits = self.config.output_router_logits if output_router_logits is None else output_router_logits
        wants_losses = wants_logits or (self.training and labels is not None)
        step = self._router_step
        if self.training:
            self._router_step += 1
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            output_router_logits=wants_logits,
            output_router_losses=wants_losses,
            token_mask=_new_tokens(attention_mask, input_ids if input_ids is not None else kwargs.get("inputs_embeds")),
            router_step=step,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        aux_loss = self._aux_loss(outputs.router_losses) if wants_losses else None
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.vocab_size, **kwargs)
            if self.training and aux_loss is not None:
                loss = loss + aux_loss.to(loss.device) * _share(labels, kwargs.get("num_items_in_batch"))
        return MoeCausalLMOutputWithPast(
            loss=loss,
            aux_loss=aux_loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
        )

    def _aux_loss(self, losses: tuple[Tensor, ...]) -> Tensor:
        importance, load = torch.stack([layer.to(losses[0].device) for layer in losses]).mean(dim=0)
        return self.config.importance_coef * importance + self.config.load_coef * load

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        config: MoEConfig | None = None,
        dtype: torch.dtype | str = "auto",
        device_map: str | int | torch.device | dict | None = None,
        attn_implementation: str | None = None,
        precision: str = "exact",
        **kwargs: Any,
    ) -> "MoEForCausalLM":
        """Loads a folder, or a model in the hub's local cache: any Mixtral checkpoint, or one of ours.

        `dtype` "auto" is the config's. Other keyword arguments override fields of the config, e.g. `router_type="noisy_topk"` (Wnoise is
        zero where the checkpoint has none) or `quantization="nf4"` (quantised while loading). `precision` as in `set_precision`; it is not
        stored. ValueError names the tensors that do not fit.
        """
        check_not_interrupted(Path(pretrained_model_name_or_path), config)
        folder = model_folder(pretrained_model_name_or_path)
        is_mixtral = read_config(folder).get("model_type") == "mixtral"
        fields = {name: kwargs.pop(name) for name in list(kwargs) if name in MoEConfig.__dataclass_fields__}
        if unknown := [name for name, value in kwargs.items() if name not in _HUB_ARGUMENTS and value]:
            raise TypeError(f"from_pretrained got unknown arguments: {', '.join(unknown)}")
        if config is not None:
            attn_implementation = attn_implementation or config._attn_implementation  # a config's dict does not hold it
        config = _resolve_config(folder, config, fields)
        if dtype == "auto":
            dtype = config.dtype or torch.float32
        dtype = parse_dtype(dtype) if isinstance(dtype, str) else dtype
        with init_empty_weights():
            model = cls._from_config(config, dtype=dtype, attn_implementation=attn_implementation)
        device = _single_device(device_map)
        load_weights(model, Checkpoint(folder), device, optional=".noise_weight" if is_mixtral else None)
        model.tie_weights()
        model.name_or_path = config.name_or_path = str(folder)
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
        return model.to(device).eval().set_precision(precision)


# what AutoModelForCausalLM hands on; everything here is local, so none of it has an effect
_HUB_ARGUMENTS = {"_from_auto", "_commit_hash", "adapter_kwargs", "trust_remote_code", "cache_dir", "force_download", "local_files_only"}
_HUB_ARGUMENTS |= {"proxies", "revision", "subfolder", "token", "use_safetensors", "code_revision", "low_cpu_mem_usage", "_from_pipeline"}


def _resolve_config(folder: Path, given: MoEConfig | None, changes: dict[str, Any]) -> MoEConfig:
    """The given configuration or the folder's, with some fields changed; Mixtral's becomes ours, without noise."""
    settings = read_config(folder) if given is None else given.to_dict()
    kind = settings.get("model_type")
    if kind == "mixtral":
        settings |= {"model_type": MoEConfig.model_type, "router_type": "topk"}
    elif kind != MoEConfig.model_type:
        raise ValueError(f"{folder} is a {kind!r} model; expected {MoEConfig.model_type!r} or 'mixtral'")
    return moe_config({**settings, **changes}, folder)


def _new_tokens(attention_mask: Tensor | None, tokens: Any) -> Tensor | None:
    """The columns [B, S] of a padding mask that belong to the tokens of this call; None where there is no such mask."""
    if not isinstance(attention_mask, Tensor) or attention_mask.dim() != 2:
        return None
    return attention_mask[:, -tokens.shape[1] :].bool()


def _share(labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor | float:
    """The share of this micro-batch in the predicted tokens of the whole batch, over which Trainer takes the loss's mean."""
    return 1.0 if num_items_in_batch is None else (labels[..., 1:] != -100).sum() / num_items_in_batch


def _single_device(device_map: str | int | torch.device | dict | None) -> torch.device:
    if isinstance(device_map, dict):
        if len(device_map) != 1:
            raise ValueError(f"device_map {device_map} has several devices; this model is loaded onto one")
        return _single_device(next(iter(device_map.values())))
    if device_map == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device("cpu" if device_map is None else device_map)
