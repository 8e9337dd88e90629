// The weights that an operator was given, as the kernels read them. moe_kernels/weights.py flattens them into lists.

#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "kernels/kernels.h"

namespace moe {

// A matrix [out, in], or a stack [E, out, in] of one for each expert.
struct Weight {
  int64_t experts = 1;
  int64_t rows = 0;
  int64_t columns = 0;
  std::vector<Matrix> matrices;  // of each expert
  at::Tensor kept[4];            // what the matrices point into
};

Dtype dtype_of(const at::Tensor& tensor);

Weight dense_weight(const at::Tensor& tensor);

// The inverse of moe_kernels.weights.flatten. NF4 whose rows are not whole blocks is expanded. ValueError if a tensor lacks bytes, or if
// an NF4 block belongs to two experts.
std::vector<Weight> restore(at::TensorList tensors, c10::ArrayRef<double> offsets, at::IntArrayRef ints);

}  // namespace moe
