// The operators of the experts: what moe_kernels/experts_ops.py calls.

#include "experts.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "cpu.h"

namespace moe {
namespace {

constexpr size_t kSaved = 7;  // order, inverse, offsets, preact, z1, z3, z2: empty where there is none

Factors factors_of(at::TensorList tensors, c10::ArrayRef<double> scalings) {
  Factors factors;
  TORCH_CHECK_VALUE(tensors.empty() || (tensors.size() == 6 && scalings.size() == 3), "LoRA is 6 factors and 3 scalings, not ",
                    tensors.size(), " and ", scalings.size());
  for (size_t i = 0; i < tensors.size(); i += 2) {
    TORCH_CHECK_VALUE(tensors[i].dim() == 3 && tensors[i + 1].dim() == 3, "LoRA factors are [E, R, in] and [E, out, R], not ",
                      tensors[i].sizes(), " and ", tensors[i + 1].sizes());
    factors.a.push_back(dense_weight(tensors[i]));
    factors.b.push_back(dense_weight(tensors[i + 1]));
    factors.scalings.push_back(scalings[i / 2]);
  }
  return factors;
}

// What the kernels index memory by must fit together, whoever called.
void check_shapes(const Call& call, const at::Tensor& x) {
  TORCH_CHECK_VALUE(x.dim() == 2 && call.weights.dim() == 2 && call.weights.size(0) == x.size(0) && call.top_k >= 1, "x of shape ",
                    x.sizes(), " and routing weights of shape ", call.weights.sizes(), " do not fit: they are [T, D] and [T, K]");
  const int64_t width = x.size(1), hidden = call.hidden(), experts = call.num_experts;
  const auto is = [](const Weight& w, int64_t count, int64_t rows, int64_t columns) {
    return w.experts == count && w.rows == rows && w.columns == columns && rows > 0 && columns > 0;
  };
  const bool fits = call.own_matrices()
                        ? is(call.base[0], experts, 2 * hidden, width) && is(call.base[1], experts, width, hidden)
                        : is(call.base[0], 1, hidden, width) && is(call.base[1], 1, hidden, width) && is(call.base[2], 1, width, hidden);
  TORCH_CHECK_VALUE(fits, "the experts' matrices do not fit each other or x of shape ", x.sizes());
  for (size_t i = 0; i < call.lora.a.size(); ++i) {
    const int64_t in = i < 2 ? width : hidden, out = i < 2 ? hidden : width, rank = call.lora.a[i].rows;
    TORCH_CHECK_VALUE(is(call.lora.a[i], experts, rank, in) && is(call.lora.b[i], experts, out, rank), "LoRA factors [",
                      call.lora.a[i].experts, ", ", rank, ", ", call.lora.a[i].columns, "] and [", call.lora.b[i].experts, ", ",
                      call.lora.b[i].rows, ", ", call.lora.b[i].columns, "] do not fit: they are [", experts, ", R, ", in, "] and [",
                      experts, ", ", out, ", R]");
  }
}

Precision precision_of(int64_t code) {
  TORCH_CHECK_VALUE(code == 0 || code == 1, "there is no precision ", code);
  return static_cast<Precision>(code);
}

template <typename S>
Call make_call(const at::Tensor& x, const at::Tensor& weights, at::TensorList tensors, c10::ArrayRef<double> offsets, at::IntArrayRef ints,
               at::TensorList factors, c10::ArrayRef<double> scalings, int64_t precision) {
  choose_isa();
  Call call;
  call.x = x.contiguous();
  call.weights = weights.to(kScalar<S>).contiguous();
  call.base = restore(tensors, offsets, ints);
  call.lora = factors_of(factors, scalings);
  TORCH_CHECK_VALUE(call.base.size() == 2 || (call.base.size() == 3 && !call.lora.empty()),
                    "experts are two matrices each, or three for all and LoRA factors");
  call.num_experts = call.own_matrices() ? call.base[0].experts : call.lora.a[0].experts;
  call.top_k = weights.dim() == 2 ? weights.size(1) : 0;
  call.precision = precision_of(precision);
  check_shapes(call, x);
  return call;
}

std::vector<at::Tensor> forward(const at::Tensor& x, const at::Tensor& routing_weights, const at::Tensor& experts, at::TensorList tensors,
                                c10::ArrayRef<double> offsets, at::IntArrayRef ints, at::TensorList factors, c10::ArrayRef<double> scalings,
                                bool save, int64_t precision) {
  const auto run = [&](auto scalar) {
    using S = decltype(scalar);
    const Call call = make_call<S>(x, routing_weights, tensors, offsets, ints, factors, scalings, precision);
    TORCH_CHECK_VALUE(experts.sizes() == routing_weights.sizes() && at::isIntegralType(experts.scalar_type(), false),
                      "expert ids are integers of the shape of the routing weights, ", routing_weights.sizes(), ", not ", experts.sizes());
    Saved saved;
    saved.grouping = group_tokens(experts, call.num_experts);
    std::vector<at::Tensor> out{experts_forward<S>(call, saved, save)};
    if (save) {
      out.insert(out.end(), {saved.grouping.order, saved.grouping.inverse, saved.grouping.offsets, saved.preact});
      out.insert(out.end(), saved.z.begin(), saved.z.end());
    }
    while (out.size() <= kSaved) out.push_back(at::empty({0}, x.options()));
    return out;
  };
  return x.scalar_type() == at::kDouble ? run(double()) : run(float());
}

// What the forward kept, as it left it.
void check_kept(const Call& call, const at::Tensor& dy, at::TensorList kept) {
  const int64_t pairs = call.weights.numel();
  const auto ids = [](const at::Tensor& tensor, int64_t count) {
    return tensor.scalar_type() == at::kLong && tensor.is_contiguous() && tensor.numel() == count;
  };
  bool fits = dy.sizes() == call.x.sizes() && kept.size() == kSaved && ids(kept[0], pairs) && ids(kept[1], pairs) &&
              ids(kept[2], call.num_experts + 1) && kept[3].sizes() == at::IntArrayRef{pairs, 2 * call.hidden()};
  for (size_t i = 0; fits && i < call.lora.a.size(); ++i) fits = kept[4 + i].sizes() == at::IntArrayRef{pairs, call.lora.a[i].rows};
  TORCH_CHECK_VALUE(fits, "the gradient of shape ", dy.sizes(), " and what was kept do not fit a forward of x of shape ", call.x.sizes());
}

std::vector<at::Tensor> backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& routing_weights, at::TensorList tensors,
                                 c10::ArrayRef<double> offsets, at::IntArrayRef ints, at::TensorList factors,
                                 c10::ArrayRef<double> scalings, at::TensorList kept, bool base_grads) {
  const auto run = [&](auto scalar) {
    using S = decltype(scalar);
    const Call call = make_call<S>(x, routing_weights, tensors, offsets, ints, factors, scalings, static_cast<int64_t>(Precision::exact));
    check_kept(call, dy, kept);
    Saved saved{{kept[0], kept[1], kept[2]}, kept[3], {}};
    for (size_t i = 0; i < call.lora.a.size(); ++i) saved.z.push_back(kept[4 + i].contiguous());
    std::vector<at::Tensor> grads = experts_backward<S>(call, saved, dy.contiguous(), base_grads);
    std::vector<at::Tensor> wanted{x, routing_weights};
    if (base_grads) wanted.insert(wanted.end(), tensors.begin(), tensors.end());
    wanted.insert(wanted.end(), factors.begin(), factors.end());
    for (size_t i = 0; i < grads.size(); ++i) grads[i] = grads[i].to(wanted[i].scalar_type());
    return grads;
  };
  return x.scalar_type() == at::kDouble ? run(double()) : run(float());
}

// x [rows, in] times the transpose of a weight [out, in], or `transposed` x [rows, out] times the weight.
at::Tensor linear(const at::Tensor& x, at::TensorList tensors, c10::ArrayRef<double> offsets, at::IntArrayRef ints, bool transposed,
                  int64_t precision) {
  choose_isa();
  const std::vector<Weight> weights = restore(tensors, offsets, ints);
  TORCH_CHECK_VALUE(weights.size() == 1, "a linear layer has one weight, not ", weights.size());
  TORCH_CHECK_VALUE(weights[0].experts == 1 && x.dim() == 2 && x.size(1) == (transposed ? weights[0].rows : weights[0].columns),
                    "x of shape ", x.sizes(), " does not fit a weight [", weights[0].rows, ", ", weights[0].columns, "]");
  const auto run = [&](auto scalar) {
    using S = decltype(scalar);
    const Term term{{x.contiguous()}, &weights[0], precision_of(precision), x.scalar_type() == at::kBFloat16};
    return grouped_linear<S>(Rows::all(x.size(0)), {term}, transposed).to(x.scalar_type());
  };
  return x.scalar_type() == at::kDouble ? run(double()) : run(float());
}

}  // namespace
}  // namespace moe

TORCH_LIBRARY_FRAGMENT(moe_kernels, m) {
  m.def(
      "experts_cpp(Tensor x, Tensor routing_weights, Tensor experts, Tensor[] tensors, float[] offsets, int[] ints, Tensor[] factors, "
      "float[] scalings, bool save, int precision) -> Tensor[]");
  m.def(
      "experts_backward_cpp(Tensor dy, Tensor x, Tensor routing_weights, Tensor[] tensors, float[] offsets, int[] ints, Tensor[] factors, "
      "float[] scalings, Tensor[] kept, bool base_grads) -> Tensor[]");
  m.def("linear_cpp(Tensor x, Tensor[] tensors, float[] offsets, int[] ints, bool transposed, int precision) -> Tensor");
}

TORCH_LIBRARY_IMPL(moe_kernels, CPU, m) {
  m.impl("experts_cpp", moe::forward);
  m.impl("experts_backward_cpp", moe::backward);
  m.impl("linear_cpp", moe::linear);
}
