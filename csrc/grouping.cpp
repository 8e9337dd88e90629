// The stable order of token-expert pairs by expert. moe_kernels/grouping.py has its description and its reference. E experts, N pairs.

#include "grouping.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

namespace moe {

// A counting sort on one thread: 15 µs for the 8192 pairs of 4096 tokens, which the experts then work on for seconds.
Grouping group_tokens(const at::Tensor& experts, int64_t num_experts) {
  TORCH_CHECK_VALUE(num_experts >= 0, "the number of experts must not be negative: ", num_experts);
  const at::Tensor pairs = experts.to(at::kLong).contiguous();
  const int64_t size = pairs.numel();
  const at::TensorOptions options = pairs.options();
  Grouping result{at::empty({size}, options), at::empty({size}, options), at::zeros({num_experts + 1}, options)};
  const int64_t* expert = pairs.const_data_ptr<int64_t>();
  int64_t* order = result.order.mutable_data_ptr<int64_t>();
  int64_t* inverse = result.inverse.mutable_data_ptr<int64_t>();
  int64_t* offsets = result.offsets.mutable_data_ptr<int64_t>();

  for (int64_t n = 0; n < size; ++n) {
    TORCH_CHECK_VALUE(0 <= expert[n] && expert[n] < num_experts, "pair ", n, " has expert ", expert[n], ", which lies outside 0..",
                      num_experts - 1);
    ++offsets[expert[n] + 1];
  }
  for (int64_t e = 0; e < num_experts; ++e) offsets[e + 1] += offsets[e];

  std::vector<int64_t> next(offsets, offsets + num_experts);  // the first free place of each expert
  for (int64_t n = 0; n < size; ++n) {
    const int64_t place = next[expert[n]]++;
    order[place] = n;
    inverse[n] = place;
  }
  return result;
}

}  // namespace moe

namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> group_tokens_cpp(const at::Tensor& experts, int64_t num_experts) {
  moe::Grouping result = moe::group_tokens(experts, num_experts);
  return {std::move(result.order), std::move(result.inverse), std::move(result.offsets)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> empty_outputs(const at::Tensor& experts, int64_t num_experts) {
  const auto options = experts.options().dtype(at::kLong);
  const auto empty = [&](const c10::SymInt& size) { return at::empty_symint({size}, options); };
  return {empty(experts.sym_numel()), empty(experts.sym_numel()), empty(num_experts + 1)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(moe_kernels, m) { m.def("group_tokens_cpp(Tensor experts, int num_experts) -> (Tensor, Tensor, Tensor)"); }

TORCH_LIBRARY_IMPL(moe_kernels, CPU, m) { m.impl("group_tokens_cpp", group_tokens_cpp); }
TORCH_LIBRARY_IMPL(moe_kernels, Meta, m) { m.impl("group_tokens_cpp", empty_outputs); }
