// NF4 weights on the CPU. The format is described in moe_kernels/nf4.py, whose reference these functions equal bit for
// bit (so: no contraction of multiply and add, see setup.py).

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linspace.h>
#include <ATen/ops/scalar_tensor.h>
#include <torch/library.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "cpu.h"
#include "dequantize.h"
#include "weights.h"

namespace moe {
namespace {

constexpr int64_t kGrain = 256;  // blocks that are worth a thread

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
  choose_isa();
  at::Tensor out = at::empty(shape, packed.options().dtype(dtype));
  const int64_t values = out.numel();
  const int64_t blocks = (values + kBlock - 1) / kBlock;
  TORCH_CHECK_VALUE(packed.is_contiguous() && absmax.is_contiguous() && nested_absmax.is_contiguous(),
                    "the tensors of an NF4 weight must be contiguous");
  TORCH_CHECK_VALUE(first_block >= 0, "the first block of an NF4 weight must be at least 0, not ", first_block);
  TORCH_CHECK_VALUE(packed.numel() == (values + 1) / 2 && absmax.numel() == blocks &&
                        nested_absmax.numel() == (first_block + blocks + kNestedBlock - 1) / kNestedBlock && dynamic_map.numel() == 256,
                    "the tensors of an NF4 weight do not have the sizes of its shape ", shape);
  Matrix row;
  row.values = packed.const_data_ptr<uint8_t>();
  row.rows = 1;
  row.columns = values;
  row.dtype = dtype_of(out);
  row.nf4 = true;
  row.absmax8 = absmax.const_data_ptr<uint8_t>();
  row.nested = nested_absmax.const_data_ptr<float>();
  row.map = dynamic_map.const_data_ptr<float>();
  row.offset = static_cast<float>(nested_offset);
  row.first_block = first_block;
  const Kernels<float>& k = kernels<float>();
  void* const target = out.mutable_data_ptr();
  at::parallel_for(0, blocks, kGrain, [&](int64_t begin, int64_t end) { k.dequantize(row, begin, end, target); });
  return out;
}

}  // namespace moe

TORCH_LIBRARY(moe_kernels, m) {
  m.def(
      "dequantize_nf4(Tensor packed, Tensor absmax, Tensor nested_absmax, Tensor dynamic_map, float nested_offset, "
      "int[] shape, ScalarType dtype, int first_block) -> Tensor");
}

TORCH_LIBRARY_IMPL(moe_kernels, CPU, m) { m.impl("dequantize_nf4", moe::dequantize_nf4); }
