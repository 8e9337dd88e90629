// The experts' forward and backward in both layouts, as moe_kernels/experts.py defines them. The stages are those of the Triton kernels'
// moe_kernels/experts_triton.py.
//
// T tokens, K experts per token, E experts, N = T*K pairs in expert order, D model width, F expert hidden width, R LoRA rank.

#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "grouped.h"
#include "grouping.h"

namespace moe {

// LoRA factors of W1, W3 and W2: a [E, R, in], b [E, out, R]; empty without.
struct Factors {
  std::vector<Weight> a, b;
  std::vector<double> scalings;

  bool empty() const { return a.empty(); }
};

// What a backward wants of the forward.
struct Saved {
  Grouping grouping;
  at::Tensor preact;          // [N, 2F] in x's dtype: W1 x beside W3 x, with what LoRA adds
  std::vector<at::Tensor> z;  // s A x [N, R] of W1, W3, W2, in S
};

struct Call {
  at::Tensor x;              // [T, D]
  at::Tensor weights;        // [T, K] in S: the routing's
  std::vector<Weight> base;  // W1 above W3 and W2 of each expert, or W1, W3, W2 for all
  Factors lora;
  int64_t num_experts;
  int64_t top_k;
  Precision precision;

  bool bf16() const { return x.scalar_type() == at::kBFloat16; }
  bool own_matrices() const { return base.size() == 2; }  // the layout `dense`
  int64_t hidden() const { return base.back().columns; }
};

// y [T, D] in x's dtype; fills `saved` (whose grouping is given) if `save`.
template <typename S>
at::Tensor experts_forward(const Call& call, Saved& saved, bool save);

// Gradients of x, of the routing's weights, of the base's tensors if they are wanted (then all dense), and of the factors, in S.
template <typename S>
std::vector<at::Tensor> experts_backward(const Call& call, const Saved& saved, const at::Tensor& dy, bool base_grads);

}  // namespace moe
