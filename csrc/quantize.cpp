// Writing NF4 on the CPU, bit for bit as bitsandbytes 0.50 does there: the decisions below that look arbitrary are its own, and
// tests/moe_kernels/test_cpp_quantize.py holds them. The format is described in moe_kernels/nf4.py.

#include <ATen/Dispatch_v2.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/scalar_tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>
#include <tuple>

#include "kernels/kernels.h"
#include "kernels/nf4.h"

namespace moe {
namespace {

constexpr int64_t kGrain = 256;       // blocks that are worth a thread
constexpr int64_t kNestedGrain = 16;  // groups of absmax that are worth a thread
constexpr int64_t kCodes = 256;       // entries of the dynamic map
constexpr float kSmallest = 1e-38f;   // what an absmax is raised to before it divides

// Half way between neighbouring levels.
constexpr std::array<float, 15> kBounds = [] {
  std::array<float, 15> bounds{};
  for (size_t i = 0; i < bounds.size(); ++i) bounds[i] = (kLevels[i] + kLevels[i + 1]) / 2;
  return bounds;
}();

using Block = std::array<float, kBlock>;

// The largest magnitude, or NaN if there is one: as integers, the bits of magnitudes are in that order.
float largest(const Block& values) {
  int32_t bits = 0;
  for (const float value : values) {
    int32_t other;
    std::memcpy(&other, &value, sizeof(other));
    bits = std::max(bits, other & 0x7fffffff);
  }
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

// Two values a byte. A value's level is the number of bounds below it: on a bound it takes the level below; NaN takes the highest.
void pack(const Block& scaled, uint8_t* packed, int64_t bytes) {
  std::array<int32_t, kBlock> levels;  // as wide as a float: narrowing inside the loop would take twice the time
  for (size_t j = 0; j < scaled.size(); ++j) {
    int32_t level = kBounds.size();
    for (const float bound : kBounds) level -= bound >= scaled[j] ? 1 : 0;
    levels[j] = level;
  }
  for (int64_t j = 0; j < bytes; ++j) packed[j] = static_cast<uint8_t>(levels[2 * j] << 4 | levels[2 * j + 1]);
}

template <typename T>
void quantize_blocks(const T* weight, uint8_t* packed, float* absmax, int64_t values, int64_t begin, int64_t end) {
  for (int64_t block = begin; block < end; ++block) {
    const T* source = weight + block * kBlock;
    const int64_t count = std::min(kBlock, values - block * kBlock);
    Block scaled;
    if (count == kBlock) {
      for (size_t j = 0; j < scaled.size(); ++j) scaled[j] = static_cast<float>(source[j]);
      absmax[block] = largest(scaled);
      const float inverse = 1 / std::max(absmax[block], kSmallest);
      for (float& value : scaled) value *= inverse;
    } else {  // a last block that is not whole is divided, and the raised absmax is kept
      scaled.fill(0);
      for (int64_t j = 0; j < count; ++j) scaled[j] = static_cast<float>(source[j]);
      absmax[block] = std::max(largest(scaled), kSmallest);
      for (int64_t j = 0; j < count; ++j) scaled[j] /= absmax[block];
    }
    pack(scaled, packed + block * kBlock / 2, (count + 1) / 2);
  }
}

using CodeBounds = std::array<float, kCodes - 1>;  // half way between neighbouring entries of the dynamic map

// The nearest entry of the dynamic map to a value, but only after that is put on a grid of 65536 points from -1 to 1. Whether the
// compiler fuses the multiplication and the addition makes no difference to the point (checked for every value).
uint8_t nearest_code(float value, const CodeBounds& bounds) {
  value = std::min(std::max(-1.0f, value), 1.0f);  // in this order NaN becomes -1
  const auto point = static_cast<int32_t>((value + 1) * 0.5f * 65535 + 0.5f);
  value = -1.0f + 2.0f * static_cast<float>(point) / 65535;
  size_t code = 0;  // how many bounds are smaller: a binary search, by a product because branches would take five times as long
  for (size_t step = kCodes / 2; step > 0; step /= 2) code += step * static_cast<size_t>(bounds[code + step - 1] < value);
  return static_cast<uint8_t>(code);
}

void quantize_groups(const float* absmax, float offset, const CodeBounds& bounds, uint8_t* absmax8, float* nested_absmax, int64_t blocks,
                     int64_t begin, int64_t end) {
  for (int64_t group = begin; group < end; ++group) {
    const int64_t first = group * kNestedBlock;
    const int64_t last = std::min(first + kNestedBlock, blocks);
    float scale = 0;
    for (int64_t i = first; i < last; ++i) scale = std::max(scale, std::abs(absmax[i] - offset));  // passes over NaN
    nested_absmax[group] = scale;
    const float inverse = 1 / scale;  // of a group of zeros: 0 * inf is NaN, and that has code 0
    for (int64_t i = first; i < last; ++i) absmax8[i] = nearest_code((absmax[i] - offset) * inverse, bounds);
  }
}

using Blocks = std::tuple<at::Tensor, at::Tensor>;              // packed bytes, fp32 absmax
using Absmax = std::tuple<at::Tensor, at::Tensor, at::Tensor>;  // 8-bit absmax, nested absmax, nested offset

// Not yet written. Of a weight without memory this is all that is known.
Blocks empty_blocks(const at::Tensor& weight) {
  const c10::SymInt values = weight.sym_numel();
  return {at::empty_symint({(values + 1) / 2, 1}, weight.options().dtype(at::kByte)),
          at::empty_symint({(values + kBlock - 1) / kBlock}, weight.options().dtype(at::kFloat))};
}

Absmax empty_absmax(const at::Tensor& absmax, const at::Tensor& /*dynamic_map*/, std::optional<double> /*nested_offset*/) {
  const c10::SymInt blocks = absmax.sym_numel();
  return {at::empty_symint({blocks}, absmax.options().dtype(at::kByte)),
          at::empty_symint({(blocks + kNestedBlock - 1) / kNestedBlock}, absmax.options()), at::empty({}, absmax.options())};
}

Blocks quantize_nf4_blocks(const at::Tensor& weight) {
  const int64_t values = weight.numel();
  TORCH_CHECK_VALUE(values > 0, "a weight of shape ", weight.sizes(), " has no values to quantise");
  TORCH_CHECK_VALUE(weight.is_contiguous(), "the weight must be contiguous");
  auto [packed, absmax] = empty_blocks(weight);
  float* scales = absmax.mutable_data_ptr<float>();
  uint8_t* bytes = packed.mutable_data_ptr<uint8_t>();
  AT_DISPATCH_V2(weight.scalar_type(), "quantize_nf4_blocks", AT_WRAP([&] {
                   const scalar_t* source = weight.const_data_ptr<scalar_t>();
                   at::parallel_for(0, absmax.numel(), kGrain,
                                    [&](int64_t begin, int64_t end) { quantize_blocks(source, bytes, scales, values, begin, end); });
                 }),
                 at::kBFloat16, at::kHalf, at::kFloat);
  return {packed, absmax};
}

// torch's mean, as bitsandbytes takes it. Above some hundred thousand values it adds in another order for every number of threads; on one
// thread the bytes are the same on every machine. Inside a task of parallel_for torch starts no threads; set_num_threads(1) would hold for
// every thread of the process.
at::Tensor mean_on_one_thread(const at::Tensor& absmax) {
  at::Tensor mean;
  at::parallel_for(0, 2, 1, [&](int64_t begin, int64_t) {  // of two tasks, for one alone would run outside of a parallel region
    if (begin == 0) mean = absmax.mean();
  });
  return mean;
}

// The second quantisation. Without a nested offset it is the mean of the absmax.
Absmax quantize_absmax(const at::Tensor& absmax, const at::Tensor& dynamic_map, std::optional<double> nested_offset) {
  TORCH_CHECK_VALUE(absmax.scalar_type() == at::kFloat && absmax.is_contiguous() && dynamic_map.is_contiguous(),
                    "absmax must be float32, and it and the dynamic map contiguous");
  TORCH_CHECK_VALUE(absmax.numel() > 0, "there are no absmax to quantise");
  TORCH_CHECK_VALUE(dynamic_map.numel() == kCodes, "the dynamic map has ", kCodes, " entries, not ", dynamic_map.numel());
  auto [absmax8, nested_absmax, mean] = empty_absmax(absmax, dynamic_map, nested_offset);
  mean = nested_offset ? at::scalar_tensor(*nested_offset, absmax.options()) : mean_on_one_thread(absmax);
  const float offset = mean.item<float>();
  CodeBounds bounds;
  const float* codes = dynamic_map.const_data_ptr<float>();
  for (size_t i = 0; i < bounds.size(); ++i) bounds[i] = (codes[i] + codes[i + 1]) / 2;
  const int64_t blocks = absmax.numel();
  const float* scales = absmax.const_data_ptr<float>();
  uint8_t* bytes = absmax8.mutable_data_ptr<uint8_t>();
  float* nested = nested_absmax.mutable_data_ptr<float>();
  at::parallel_for(0, nested_absmax.numel(), kNestedGrain,
                   [&](int64_t begin, int64_t end) { quantize_groups(scales, offset, bounds, bytes, nested, blocks, begin, end); });
  return {absmax8, nested_absmax, mean};
}

}  // namespace
}  // namespace moe

TORCH_LIBRARY_FRAGMENT(moe_kernels, m) {
  m.def("quantize_nf4_blocks(Tensor weight) -> (Tensor packed, Tensor absmax)");
  m.def(
      "quantize_absmax(Tensor absmax, Tensor dynamic_map, float? nested_offset=None) -> (Tensor absmax8, Tensor nested_absmax, "
      "Tensor nested_offset)");
}

TORCH_LIBRARY_IMPL(moe_kernels, CPU, m) {
  m.impl("quantize_nf4_blocks", moe::quantize_nf4_blocks);
  m.impl("quantize_absmax", moe::quantize_absmax);
}
TORCH_LIBRARY_IMPL(moe_kernels, Meta, m) {
  m.impl("quantize_nf4_blocks", moe::empty_blocks);
  m.impl("quantize_absmax", moe::empty_absmax);
}
