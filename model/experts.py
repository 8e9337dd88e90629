"""The experts of one layer, in both layouts.

Shapes: T tokens, K experts per token, E experts, D model width, F expert hidden width, R LoRA rank.
"""

import torch
from torch import Tensor, nn

from moe_kernels.experts import ExpertLoRA, LoRA, moe_dense, moe_lora
from moe_kernels.routing import Routing

from .configuration_moe import MoEConfig
from .quantization import MatrixModule

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


class DenseExperts(MatrixModule):
    """Every expert has its own matrices: `gate_up_proj` [E, 2F, D] (gate first) and `down_proj` [E, D, F]."""

    def __init__(self, config: MoEConfig) -> None:
        super().__init__(quantized=config.quantization == "nf4")
        experts, width, hidden = config.num_stored_experts, config.hidden_size, config.intermediate_size
        self.add_matrix("gate_up_proj", experts, 2 * hidden, width)
        self.add_matrix("down_proj", experts, width, hidden)

    def forward(self, x_TD: Tensor, routing: Routing) -> Tensor:
        return moe_dense(x_TD, routing, self.matrix("gate_up_proj"), self.matrix("down_proj"), precision=self.precision)


class LoraExperts(MatrixModule):
    """One FFN for all experts (`gate_proj`, `up_proj` [F, D], `down_proj` [D, F]); expert e adds B_e A_e to each matrix.

    The factors are `<matrix>_lora_A` [E, R, in] and `<matrix>_lora_B` [E, out, R]; PEFT's scaling is inside B.
    """

    def __init__(self, config: MoEConfig) -> None:
        super().__init__(quantized=config.quantization == "nf4")
        width, hidden, rank = config.hidden_size, config.intermediate_size, config.lora_rank
        for name in PROJECTIONS:
            out_features, in_features = (width, hidden) if name == "down_proj" else (hidden, width)
            self.add_matrix(name, out_features, in_features)
            self.register_parameter(f"{name}_lora_A", nn.Parameter(torch.empty(config.num_stored_experts, rank, in_features)))
            self.register_parameter(f"{name}_lora_B", nn.Parameter(torch.empty(config.num_stored_experts, out_features, rank)))

    def forward(self, x_TD: Tensor, routing: Routing) -> Tensor:
        lora = ExpertLoRA(w1=self._factors("gate_proj"), w3=self._factors("up_proj"), w2=self._factors("down_proj"))
        w1, w3, w2 = (self.matrix(name) for name in PROJECTIONS)
        return moe_lora(x_TD, routing, w1, w3, w2, lora, precision=self.precision)

    def _factors(self, name: str) -> LoRA:
        return LoRA(getattr(self, f"{name}_lora_A"), getattr(self, f"{name}_lora_B"), scaling=1.0)
