"""`MoEForCausalLM`: transformers' Mixtral with our mixture block in place of theirs.

Attention, norms, rotary embedding, masks, cache and generation are transformers'. Ours are the layer's mixture block
(`decoder_layer.py`), the router and its losses (`routers.py`), the experts (`experts.py`), and loading, which is strict and knows NF4
(`from_pretrained.py`).

Shapes: B batch, S sequence, T = B·S tokens, E experts, D model width, V vocabulary.
"""

import math
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationMixin, MixtralConfig
from transformers import initialization as init
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
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
from moe_kernels.routing import z_loss

from .attention import MoEAttention
from .configuration_moe import MoEConfig
from .decoder_layer import MoEDecoderLayer
from .experts import DenseExperts, LoraExperts
from .from_pretrained import StrictLoading
from .quantization import MatrixModule, NF4Linear, check_no_factors, quantized_matrices
from .routers import SWITCH_LOSS, MoERouter, auxiliary_loss, expert_choices, mean_over_layers, new_tokens, noise_seeds, prompt_tokens
from .saving import save_model


class MoEPreTrainedModel(StrictLoading):
    config: MoEConfig
    config_class = MoEConfig
    _no_split_modules = ["MoEDecoderLayer"]  # noqa: RUF012
    _weight_conversions: list[Any] = []  # noqa: RUF012  # of saving: under our own names, not under those of `peft_names.py`
    _can_record_outputs = {  # noqa: RUF012
        "router_logits": OutputRecorder(MoERouter, index=0, layer_name="mlp"),
        "routings": OutputRecorder(MoERouter, index=1),
        "hidden_states": MoEDecoderLayer,
        "attentions": MixtralAttention,
    }

    def save_pretrained(self, save_directory: str | Path, is_main_process: bool = True, **options: Any) -> None:  # type: ignore[override]
        """As transformers', with its options. Killed at any point, it leaves the old checkpoint or the new one, and other files alone.

        OSError or SafetensorError on a full disk, and then nothing has changed. ValueError for a `variant`, which could not be loaded
        again, and for a quantised model that has no matrices yet.
        """
        if options.get("variant"):
            raise ValueError(f"save_pretrained does not support variant={options['variant']!r}: from_pretrained reads no variants")
        for module in self.modules():
            if isinstance(module, MatrixModule):
                module.check_loaded()
        save_model(super().save_pretrained, Path(save_directory), is_main_process=is_main_process, **options)

    def load_adapter(self, *args: Any, **options: Any) -> Any:
        """As transformers'; ValueError naming the tensors of the adapter that find no place in this model."""
        info = super().load_adapter(*args, **options)
        check_no_factors(info.unexpected_keys)
        return info

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """What DistributedDataParallel would broadcast before every forward otherwise: the frozen NF4 bytes. No buffer here is learned.

        PEFT's wrapper asks the model within it, whose names it prefixes.
        """
        return [prefix + name for prefix in ("", "base_model.model.") for name, _ in self.named_buffers()]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, NF4Linear):
            return  # its weight is absent until it is loaded
        super()._init_weights(module)
        if isinstance(module, MoEModel):
            init.zeros_(module.router_step)
        if not isinstance(module, MoERouter | DenseExperts | LoraExperts | MoEAttention):
            return
        for name, parameter in module.named_parameters(recurse=False):
            if name == "noise_weight" or name.endswith("lora_B"):
                init.zeros_(parameter)
            else:
                init.normal_(parameter, mean=0.0, std=self.config.initializer_range)

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """As transformers', which knows Parameters alone: a value in NF4 counts as one too, and is never trainable."""
        quantized = 0 if only_trainable else sum(math.prod(matrix.shape) for matrix in quantized_matrices(self))
        return super().num_parameters(only_trainable, exclude_embeddings) + quantized

    def set_precision(self, precision: str) -> "MoEPreTrainedModel":
        """How products with NF4 are computed on a CPU: one of `moe_kernels.backend.PRECISIONS`, of which only `exact` can be trained in.

        `ValueError` for an unknown name, or for one that this machine, this model's device or its matrices do not allow.
        """
        weights = [module.matrix(name) for module in self.modules() if isinstance(module, MatrixModule) for name in module.matrices()]
        precision_code(precision, next(self.parameters()), training=False, weights=weights)
        for module in self.modules():
            if isinstance(module, MatrixModule):
                module.precision = precision
        return self


class MoEModel(MoEPreTrainedModel, MixtralModel):
    """Mixtral's decoder stack of `MoEDecoderLayer`s, noise included. It has no loss, as Mixtral's has none.

    With `output_routings=True` its output has `routings`, of which `routers.mean_over_layers` and `auxiliary_loss` make one.
    """

    def __init__(self, config: MixtralConfig) -> None:
        config = MoEConfig.of(config)
        MixtralPreTrainedModel.__init__(self, config)
        self.padding_idx, self.vocab_size = config.pad_token_id, config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(MoEDecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = MixtralRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = MixtralRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.router_step = nn.Buffer(torch.zeros((), dtype=torch.int64), persistent=False)  # of the next training forward
        self.router_noise_is_off = False
        self.post_init()

    def set_router_step(self, step: int) -> None:
        """The step that the next training forward draws its noise from; each forward then takes the next one.

        The noise depends on `config.router_seed`, the layer and this number only, so a resumed run draws what an unbroken run draws.
        """
        self.router_step.fill_(step)

    def set_router_noise(self, scale: float) -> None:
        """Multiplies the noise of training by `scale`: 1, the default, is the paper's, 0 is none. It is not stored."""
        self.router_noise_is_off = scale == 0
        for module in self.modules():
            if isinstance(module, MoERouter):
                module.noise_scale = None if scale in (0, 1) else torch.tensor(scale, device=module.weight.device)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        token_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> MoeModelOutputWithPast:
        """As `MixtralModel.forward`; the routings' sums are over `token_mask` [B, S], by default the tokens that `attention_mask` keeps.

        With `sequence`, these tokens choose the experts of their row, where there is no cache or an empty one; the cache keeps the choice.
        """
        if token_mask is None:
            token_mask = new_tokens(attention_mask, inputs_embeds if input_ids is None else input_ids)
        if self.config.router_type == "sequence" and past_key_values is not None and past_key_values.get_seq_length() == 0:
            expert_choices(past_key_values).clear()
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            token_mask=token_mask,
            noise_seeds=self._next_noise_seeds(),
            **kwargs,
        )

    def _next_noise_seeds(self) -> Tensor | None:
        if not self.training or self.router_noise_is_off or self.config.router_type != "noisy_topk":
            return None
        gates = self.config.num_hidden_layers * (2 if self.config.attention_experts else 1)
        seeds = noise_seeds(self.config.router_seed, gates, self.router_step)
        self.router_step.add_(1)
        return seeds


class MoEForCausalLM(MoEPreTrainedModel, GenerationMixin):
    """A causal language model whose FFNs are mixtures of experts; `MoEConfig` has the choices.

    The gate is computed in fp32 whatever the dtype, so in bf16 a token whose experts nearly tie may go elsewhere than in Mixtral.

    A quantised model has its NF4 matrices only after loading: `from_pretrained` or `load_state_dict`.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: MixtralConfig) -> None:
        config = MoEConfig.of(config)
        super().__init__(config)
        self.model = MoEModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def set_router_step(self, step: int) -> None:
        """See `MoEModel.set_router_step`."""
        self.model.set_router_step(step)

    def set_router_noise(self, scale: float) -> None:
        """See `MoEModel.set_router_noise`."""
        self.model.set_router_noise(scale)

    def train(self, mode: bool = True) -> "MoEForCausalLM":
        """As `nn.Module.train`, with a warning if NF4 matrices, which cannot learn, are about to be trained around."""
        if mode and self.config.quantization == "nf4" and self.get_input_embeddings().weight.requires_grad:
            warnings.warn(
                "matrices in NF4 do not learn: embeddings, norms, head and gates alone will; an adapter (PEFT) trains the rest",
                stacklevel=2,
            )
        return super().train(mode)

    def export_mixtral(self, out: str | Path, dtype: torch.dtype = torch.bfloat16) -> None:
        """Writes the folder `out` as plain Mixtral; see `export.export_mixtral`."""
        from .export import export_mixtral  # a command of its own, which runs this package first

        export_mixtral(self, Path(out), dtype)

    @property
    def router_aux_loss_coef(self) -> float:
        """The configuration's, as Mixtral's attribute; it may be set."""
        return self.config.router_aux_loss_coef

    @router_aux_loss_coef.setter
    def router_aux_loss_coef(self, value: float) -> None:
        self.config.router_aux_loss_coef = value

    @property
    def num_experts(self) -> int:
        """E of the configuration, as Mixtral's attribute."""
        return self.config.num_local_experts

    @property
    def num_experts_per_tok(self) -> int:
        """K of the configuration, as Mixtral's attribute."""
        return self.config.num_experts_per_tok

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        token_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast:
        """As `MixtralForCausalLM.forward`, except for the auxiliary loss, which is the mean over layers of each layer's own.

        Over the tokens of `token_mask` [B, S], by default those that `attention_mask` keeps, `aux_loss` is, for the router types

        - `topk` and `switch`: E · Σ_e f_e P_e, given with `output_router_logits`; then, as in transformers, `loss` has router_aux_loss_coef
          times it. transformers takes f and P over all layers together, where opposite imbalances of two layers cancel.
        - `noisy_topk`, `softmax` and `sequence`: importance_coef · CV²(importance) + load_coef · CV²(load), given with
          `output_router_logits` and while training; a part of `loss` only while training, so that the loss of an evaluation is the language
          model's alone.

        While training, `loss` has router_z_loss_coef · z-loss too, the mean over layers. All of these weigh as much as this micro-batch's
        share of `num_items_in_batch`, if Trainer gives that.

        With `sequence`, the tokens without a label choose the experts of their row; all tokens do where none or all have one. The choice is
        made where there is no cache or an empty one; the cache keeps it.

        `router_logits`: clean logits [T, E] of each layer, in fp32.
        """
        wants_logits = self.config.output_router_logits if output_router_logits is None else output_router_logits
        is_switch = self.config.router_type in SWITCH_LOSS
        trains = self.training and labels is not None
        wants_aux = wants_logits or (trains and not is_switch)
        wants_z = trains and self.config.router_z_loss_coef > 0
        if token_mask is None:
            token_mask = new_tokens(attention_mask, inputs_embeds if input_ids is None else input_ids)
        if self.config.router_type == "sequence" and labels is not None:
            token_mask = prompt_tokens(token_mask, labels)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_router_logits=wants_logits,
            output_routings=wants_aux or wants_z,
            token_mask=token_mask,
            **kwargs,
        )
        logits = self.lm_head(_kept(outputs.last_hidden_state, logits_to_keep))
        aux_loss = loss = None
        if wants_aux:
            aux_loss = mean_over_layers(partial(auxiliary_loss, config=self.config), outputs.routings, token_mask)
        if labels is not None:
            loss = self.loss_function(logits, labels, self.vocab_size, **kwargs)
            share = _share(labels, kwargs.get("num_items_in_batch"))
            if aux_loss is not None and (is_switch or self.training):
                self._warn_if_detached(aux_loss)
                weight = self.config.router_aux_loss_coef if is_switch else 1.0
                loss = loss + weight * share * aux_loss.to(loss.device)
            if wants_z:
                z = mean_over_layers(lambda routing, mask_T: z_loss(routing.logits_TE, mask_T), outputs.routings, token_mask)
                self._warn_if_detached(z)
                loss = loss + self.config.router_z_loss_coef * share * z.to(loss.device)
        return MoeCausalLMOutputWithPast(
            loss=loss,
            aux_loss=aux_loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
        )

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Any, *, attention_mask: Tensor | None = None, inputs_embeds: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """As transformers', which with a static cache leaves no padding mask [B, S], by which padding has no vote, but a causal one.

        `inputs_embeds` is named because `generate` refuses it otherwise.
        """
        kwargs |= {"attention_mask": attention_mask, "inputs_embeds": inputs_embeds}
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(input_ids, **kwargs)  # type: ignore[misc]
        if inputs.get("attention_mask") is not attention_mask:
            tokens = inputs["input_ids"] if inputs["input_ids"] is not None else inputs["inputs_embeds"]
            inputs["token_mask"] = new_tokens(attention_mask, tokens)
        return inputs

    def _warn_if_detached(self, router_loss: Tensor) -> None:
        if not self.training or router_loss.requires_grad or not torch.is_grad_enabled():
            return
        if any(module.weight.requires_grad for module in self.modules() if isinstance(module, MoERouter)):
            warnings.warn(
                "the routers' losses have no gradient under reentrant checkpointing; enable it with use_reentrant=False",
                stacklevel=2,
            )


def _kept(hidden_BSD: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """The last positions, those of a list, or of each sample's list or mask [B, ...]: transformers' `slice_logits_to_keep`, not in 5.17."""
    if isinstance(logits_to_keep, int):
        return hidden_BSD[:, -logits_to_keep:]
    if logits_to_keep.dim() == 1:
        return hidden_BSD[:, logits_to_keep]
    if logits_to_keep.dtype == torch.bool:
        return hidden_BSD[logits_to_keep]
    return hidden_BSD.take_along_dim(logits_to_keep[..., None], dim=1)


def _share(labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor | float:
    """The share of this micro-batch in the predicted tokens of the whole batch, over which Trainer takes the loss's mean."""
    return 1.0 if num_items_in_batch is None else (labels[..., 1:] != -100).sum() / num_items_in_batch
