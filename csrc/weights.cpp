#include "weights.h"

#include <ATen/ops/empty.h>

#include "dequantize.h"

namespace moe {
namespace {

constexpr at::ScalarType kNf4Dtypes[] = {at::kBFloat16, at::kHalf, at::kFloat};  // moe_kernels.nf4.DTYPES

Weight nf4_weight(at::TensorList tables, double offset, at::ScalarType dtype, int64_t first_block, at::IntArrayRef shape) {
  Weight weight;
  weight.columns = shape.back();
  weight.rows = shape[shape.size() - 2];
  weight.experts = shape.size() == 3 ? shape[0] : 1;
  const int64_t size = weight.rows * weight.columns, blocks = (weight.experts * size + kBlock - 1) / kBlock;
  TORCH_CHECK_VALUE(weight.experts == 1 || size % kBlock == 0, "an expert of ", weight.rows, "x", weight.columns,
                    " values is not a whole number of NF4 blocks of ", kBlock);
  if (weight.columns % kBlock != 0) {
    return dense_weight(dequantize_nf4(tables[0], tables[1], tables[2], dynamic_map(), offset, shape, dtype, first_block));
  }
  TORCH_CHECK_VALUE(first_block >= 0, "the first block of an NF4 weight must be at least 0, not ", first_block);
  const int64_t groups = (first_block + blocks + kNestedBlock - 1) / kNestedBlock;
  for (const at::Tensor& table : tables) TORCH_CHECK_VALUE(table.is_contiguous(), "the tensors of an NF4 weight must be contiguous");
  TORCH_CHECK_VALUE(tables[0].numel() == blocks * kBlock / 2 && tables[1].numel() == blocks && tables[2].numel() == groups,
                    "the tensors of an NF4 weight do not have the sizes of its shape ", shape);
  weight.kept[0] = tables[0];
  weight.kept[1] = tables[1];
  weight.kept[2] = tables[2];
  weight.kept[3] = dynamic_map();
  for (int64_t e = 0; e < weight.experts; ++e) {
    Matrix matrix;
    matrix.values = tables[0].const_data_ptr<uint8_t>() + e * size / 2;
    matrix.rows = weight.rows;
    matrix.columns = weight.columns;
    matrix.dtype = dtype == at::kBFloat16 ? Dtype::bf16 : dtype == at::kHalf ? Dtype::f16 : Dtype::f32;
    matrix.nf4 = true;
    matrix.absmax8 = tables[1].const_data_ptr<uint8_t>() + e * (size / kBlock);
    matrix.nested = tables[2].const_data_ptr<float>();
    matrix.map = weight.kept[3].const_data_ptr<float>();
    matrix.offset = static_cast<float>(offset);
    matrix.first_block = first_block + e * (size / kBlock);
    weight.matrices.push_back(matrix);
  }
  return weight;
}

}  // namespace

Dtype dtype_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return Dtype::f32;
    case at::kBFloat16:
      return Dtype::bf16;
    case at::kHalf:
      return Dtype::f16;
    case at::kDouble:
      return Dtype::f64;
    default:
      TORCH_CHECK_VALUE(false, "the experts take floating-point tensors, not ", tensor.scalar_type());
  }
}

Weight dense_weight(const at::Tensor& tensor) {
  Weight weight;
  weight.kept[0] = tensor.contiguous();
  weight.columns = tensor.size(-1);
  weight.rows = tensor.size(-2);
  weight.experts = tensor.dim() == 3 ? tensor.size(0) : 1;
  const int64_t bytes = weight.rows * weight.columns * tensor.element_size();
  for (int64_t e = 0; e < weight.experts; ++e) {
    Matrix matrix;
    matrix.values = static_cast<const char*>(weight.kept[0].const_data_ptr()) + e * bytes;
    matrix.rows = weight.rows;
    matrix.columns = weight.columns;
    matrix.dtype = dtype_of(tensor);
    weight.matrices.push_back(matrix);
  }
  return weight;
}

std::vector<Weight> restore(at::TensorList tensors, c10::ArrayRef<double> offsets, at::IntArrayRef ints) {
  std::vector<Weight> weights;
  size_t tensor = 0, fact = 0;
  for (const double offset : offsets) {
    const int64_t kind = ints.at(fact++);
    if (kind < 0) {
      weights.push_back(dense_weight(tensors.at(tensor++)));
      continue;
    }
    const int64_t first_block = ints.at(fact), dims = ints.at(fact + 1);
    TORCH_CHECK_VALUE(kind < 3 && (dims == 2 || dims == 3) && fact + 2 + dims <= ints.size() && tensor + 3 <= tensors.size(),
                      "the description of a weight does not fit its tensors");
    weights.push_back(nf4_weight(tensors.slice(tensor, 3), offset, kNf4Dtypes[kind], first_block, ints.slice(fact + 2, dims)));
    tensor += 3;
    fact += 2 + dims;
  }
  return weights;
}

}  // namespace moe
