// What routing's forward and backward share. moe_kernels/routing.py has the formulas.
//
// T tokens, K experts per token, E experts, D model width. Everything is computed in `Wide`: fp64 if x is, else fp32.
// Tokens are worked on in tiles of a fixed size and every sum has a fixed order, so that no bit depends on the number of threads.

#pragma once

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string_view>
#include <type_traits>

namespace moe::routing {

constexpr int64_t kTile = 16;            // tokens whose sums are added up before they join the others
constexpr int64_t kProducts = 1 << 17;   // products that are worth a thread: about 12 µs, twice what it takes to wake one
constexpr double kSmallestStd = 1e-6;    // as in the reference
constexpr double kSoftplusLimit = 20.0;  // above it softplus is the identity, as torch has it

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How many of a loop's steps are worth a thread.
inline int64_t grain(int64_t products_per_step) { return std::max<int64_t>(1, kProducts / std::max<int64_t>(1, products_per_step)); }

// Sixteen sums side by side, which a compiler keeps in vector registers whatever their width.
template <typename Wide>
Wide dot(const Wide* a, const Wide* b, int64_t size) {
  constexpr int64_t kLanes = 16;
  std::array<Wide, kLanes> sums{};
  const int64_t whole = size - size % kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) sums[lane] += a[i + lane] * b[i + lane];
  }
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  }
  Wide rest = 0;
  for (int64_t i = whole; i < size; ++i) rest += a[i] * b[i];
  return sums[0] + rest;
}

// out += scale * values
template <typename Wide>
void add_scaled(Wide* __restrict out, Wide scale, const Wide* __restrict values, int64_t size) {
  for (int64_t i = 0; i < size; ++i) out[i] += scale * values[i];
}

// `size` values in Wide: themselves where they are so, else in `scratch`.
template <typename Wide, typename Narrow>
const Wide* widen(const Narrow* values, Wide* scratch, int64_t size) {
  if constexpr (std::is_same_v<Wide, Narrow>) {
    return values;
  } else {
    for (int64_t i = 0; i < size; ++i) scratch[i] = static_cast<Wide>(values[i]);
    return scratch;
  }
}

template <typename Wide>
Wide softplus(Wide raw) {
  return raw > Wide(kSoftplusLimit) ? raw : std::log1p(std::exp(raw));
}

template <typename Wide>
Wide softplus_derivative(Wide raw) {
  if (raw > Wide(kSoftplusLimit)) return 1;
  const Wide z = std::exp(raw);
  return z / (z + 1);
}

// The noise's standard deviation as the load divides by it; NaN stays.
template <typename Wide>
Wide clamped_std(Wide raw) {
  return std::max(softplus(raw), Wide(kSmallestStd));
}

template <typename Wide>
Wide normal_cdf(Wide z) {
  return Wide(0.5) * std::erfc(z * Wide(-0.70710678118654752));
}

// Whether expert a comes before expert b: in descending order of their values, NaN first, ties by number. As torch's stable sort.
template <typename Wide>
bool before(const Wide* values, int64_t a, int64_t b) {
  const bool a_nan = std::isnan(values[a]), b_nan = std::isnan(values[b]);
  if (a_nan != b_nan) return a_nan;
  if (!a_nan && values[a] != values[b]) return values[a] > values[b];
  return a < b;
}

// The kinds of routing.py, as far as the arithmetic tells them apart.
struct Kind {
  bool over_all;  // the softmax is over all experts (switch, sequence), not over the chosen (of softmax these are all)
  bool sequence;

  bool noisy;

  Kind(std::string_view name, bool has_noise)
      : over_all(name == "switch" || name == "sequence"), sequence(name == "sequence"), noisy(has_noise && !over_all) {
    TORCH_CHECK_VALUE(over_all || name == "noisy_topk" || name == "topk" || name == "softmax", "unknown router kind '", name, "'");
  }
  // How many [T, E] the forward saves: x·Wnoise and the normals, or the mean logits of each token's sequence.
  int64_t planes() const { return noisy ? 2 : sequence ? 1 : 0; }
};

// Softmax over experts `among` of values whose largest is `top`; as in torch, NaN for all if one of them is NaN or infinite.
template <typename Wide>
void softmax(const Wide* values, const int64_t* among, int64_t size, Wide top, Wide* probabilities) {
  Wide sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += probabilities[i] = std::exp(values[among[i]] - top);
  for (int64_t i = 0; i < size; ++i) probabilities[i] /= sum;
}

inline void check_inputs(const at::Tensor& x, const at::Tensor& w_gate, const std::optional<at::Tensor>& w_noise,
                         const std::optional<at::Tensor>& seed, const std::optional<at::Tensor>& sequence_ids,
                         const std::optional<at::Tensor>& mask, const Kind& kind, int64_t top_k) {
  TORCH_CHECK_VALUE(x.dim() == 2 && w_gate.dim() == 2 && w_gate.size(1) == x.size(1), "x ", x.sizes(), " and w_gate ", w_gate.sizes(),
                    " must be [T, D] and [E, D]");
  TORCH_CHECK_VALUE(!w_noise || w_noise->sizes() == w_gate.sizes(), "w_gate and w_noise must have one shape");
  TORCH_CHECK_VALUE(!seed || (seed->numel() == 1 && seed->scalar_type() == at::kLong), "the seed must be one int64");
  TORCH_CHECK_VALUE(!mask || mask->numel() == x.size(0), "the mask must have one entry for each token");
  TORCH_CHECK_VALUE(!kind.sequence || (sequence_ids && sequence_ids->numel() == x.size(0)), "kind sequence needs an id for each token");
  TORCH_CHECK_VALUE(1 <= top_k && top_k <= w_gate.size(0), "top_k must lie in 1..", w_gate.size(0), ", not ", top_k);
}

inline int64_t checked_sequence(int64_t id, int64_t tokens) {
  TORCH_CHECK_VALUE(0 <= id && id < tokens, "the sequence id ", id, " lies outside 0..", tokens - 1);
  return id;
}

// An optional argument in the form the loops read it, and null without it.
template <typename T>
struct Argument {
  at::Tensor tensor;
  const T* data = nullptr;

  explicit Argument(const std::optional<at::Tensor>& given) {
    if (!given) return;
    tensor = given->to(c10::CppTypeToScalarType<T>::value).contiguous();
    data = tensor.template const_data_ptr<T>();
  }
  explicit operator bool() const { return data != nullptr; }
};

}  // namespace moe::routing
