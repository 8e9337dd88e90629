// NF4 weights as tensors; moe_kernels/nf4.py describes the format.

#pragma once

#include <ATen/core/Tensor.h>

namespace moe {

// bitsandbytes' map of 8-bit absmax, fp32 [256].
const at::Tensor& dynamic_map();

at::Tensor dequantize_nf4(const at::Tensor& packed, const at::Tensor& absmax, const at::Tensor& nested_absmax,
                          const at::Tensor& dynamic_map, double nested_offset, at::IntArrayRef shape, at::ScalarType dtype,
                          int64_t first_block);

}  // namespace moe
