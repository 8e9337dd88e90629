// NF4 weights on the CPU. The format is described in moe_kernels/nf4.py, whose reference these functions equal bit for
// bit (so: no contraction of multiply and add, see setup.py).

#include "kernels/nf4.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linspace.h>
#include <ATen/ops/scalar_tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "dequantize.h"
#include "kernels/kernels.h"

namespace moe {
namespace {

constexpr int64_t kGrain = 256;  // blocks that are worth a thread

// Where the 8-bit absmax of a weight lie and what they mean.
struct Absmax {
  const uint8_t* absmax8;      // [blocks]
  const float* dynamic_map;    // [256]
  const float* nested_absmax;  // [ceil((first_block + blocks) / 256)]
  float nested_offset;
  int64_t first_block;  // blocks of the first group of 256 that lie before this weight

  float operator[](int64_t block) const {
    return dynamic_map[absmax8[block]] * nested_absmax[(first_block + block) / kNestedBlock] + nested_offset;
  }
};

// Sixteen products and roundings per block instead of 64: the values of a block are looked up in its own scaled levels.
template <typename T>
void dequantize_blocks(const uint8_t* packed, const Absmax& absmax, T* out, int64_t values, int64_t begin, int64_t end) {
  for (int64_t block = begin; block < end; ++block) {
    const float scale = absmax[block];
    std::array<T, 16> scaled;
    for (size_t i = 0; i < scaled.size(); ++i) scaled[i] = static_cast<T>(kLevels[i] * scale);

    const int64_t first = block * kBlock;
    const int64_t count = std::min(kBlock, values - first);
    const uint8_t* bytes = packed + first / 2;
    T* target = out + first;
    for (int64_t j = 0; j < count / 2; ++j) {  // one store a pair: of two stores GCC makes vector code that takes fp32 five times as long
      const std::array<T, 2> pair = {scaled[bytes[j] >> 4], scaled[bytes[j] & 15]};
      std::memcpy(target + 2 * j, pair.data(), sizeof(pair));
    }
    if (count % 2) target[count - 1] = scaled[bytes[count / 2] >> 4];
  }
}

}  // namespace

const at::Tensor& dynamic_map() {
  static const at::Tensor map = [] {
    const at::TensorOptions options = at::TensorOptions().dtype(at::kFloat);  // whatever the default dtype is just now
    std::vector<at::Tensor> values{at::scalar_tensor(0.0f, options), at::scalar_tensor(1.0f, options)};
    for (int64_t i = 0; i < 7; ++i) {
      const at::Tensor edges = at::linspace(0.1, 1, (1 << i) + 1, options);
      const at::Tensor middles = (edges.slice(0, 0, -1) + edges.slice(0, 1)) / 2 * std::pow(10.0, i - 6);
      values.insert(values.end(), {middles, -middles});
    }
    for (at::Tensor& value : values) value = value.reshape(-1);
    return std::get<0>(at::cat(values).sort());
  }();
  return map;
}

at::Tensor dequantize_nf4(const at::Tensor& packed, const at::Tensor& absmax, const at::Tensor& nested_absmax,
                          const at::Tensor& dynamic_map, double nested_offset, at::IntArrayRef shape, at::ScalarType dtype,
                          int64_t first_block) {
  at::Tensor out = at::empty(shape, packed.options().dtype(dtype));
  const int64_t values = out.numel();
  const int64_t blocks = (values + kBlock - 1) / kBlock;
  TORCH_CHECK_VALUE(packed.is_contiguous() && absmax.is_contiguous() && nested_absmax.is_contiguous(),
                    "the tensors of an NF4 weight must be contiguous");
  TORCH_CHECK_VALUE(packed.numel() == (values + 1) / 2 && absmax.numel() == blocks &&
                        nested_absmax.numel() == (first_block + blocks + kNestedBlock - 1) / kNestedBlock && dynamic_map.numel() == 256,
                    "the tensors of an NF4 weight do not have the sizes of its shape ", shape);
  const Absmax scales{absmax.const_data_ptr<uint8_t>(), dynamic_map.const_data_ptr<float>(), nested_absmax.const_data_ptr<float>(),
                      static_cast<float>(nested_offset), first_block};
  const uint8_t* bytes = packed.const_data_ptr<uint8_t>();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, dtype, "dequantize_nf4", [&] {
    scalar_t* target = out.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, blocks, kGrain, [&](int64_t begin, int64_t end) { dequantize_blocks(bytes, scales, target, values, begin, end); });
  });
  return out;
}

}  // namespace moe

TORCH_LIBRARY(moe_kernels, m) {
  m.def(
      "dequantize_nf4(Tensor packed, Tensor absmax, Tensor nested_absmax, Tensor dynamic_map, float nested_offset, "
      "int[] shape, ScalarType dtype, int first_block) -> Tensor");
}

TORCH_LIBRARY_IMPL(moe_kernels, CPU, m) { m.impl("dequantize_nf4", moe::dequantize_nf4); }
