// Token-expert pairs in expert order, as moe_kernels/grouping.py describes them. E experts, N pairs.

#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace moe {

struct Grouping {
  at::Tensor order;    // int64 [N]: the pair at each place of the expert order
  at::Tensor inverse;  // int64 [N]: the place of each pair
  at::Tensor offsets;  // int64 [E+1]: expert e holds places offsets[e]..offsets[e+1]-1
};

// Sorts the pairs by expert, stably. `experts` are N integers of any shape and dtype; ValueError for one outside 0..E-1.
Grouping group_tokens(const at::Tensor& experts, int64_t num_experts);

}  // namespace moe
