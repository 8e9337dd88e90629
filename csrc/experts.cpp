// The operators of the experts: what moe_kernels/experts_ops.py calls.

#include "experts.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace moe {
namespace {

constexpr size_t kSaved = 7;  // order, inverse, offsets, preact, z1, z3, z2: empty where there is none

Factors factors_of(at::TensorList tensors, c10::ArrayRef<double> scalings) {
  Factors factors;
  for (size_t i = 0; i < tensors.size(); i += 2) {
    factors.a.push_back(dense_weight(tensors[i]));
    factors.b.push_back(dense_weight(tensors[i + 1]));
    factors.scalings.push_back(scalings[i / 2]);
  }
  return factors;
}

template <typename S>
Call make_call(const at::Tensor& x, const at::Tensor& weights, at::TensorList tensors, c10::ArrayRef<double> offsets, at::IntArrayRef ints,
               at::TensorList factors, c10::ArrayRef<double> scalings, int64_t precision) {
  Call call;
  call.x = x.contiguous();
  call.weights = weights.to(std::is_same_v<S, double> ? at::kDouble : at::kFloat).contiguous();
  call.base = restore(tensors, offsets, ints);
  call.lora = factors_of(factors, scalings);
  call.num_experts = call.dense() ? call.base[0].experts : call.lora.a[0].experts;
  call.top_k = weights.size(1);
  call.precision = static_cast<Precision>(precision);
  return call;
}

std::vector<at::Tensor> forward(const at::Tensor& x, const at::Tensor& routing_weights, const at::Tensor& experts, at::TensorList tensors,
                                c10::ArrayRef<double> offsets, at::IntArrayRef ints, at::TensorList factors, c10::ArrayRef<double> scalings,
                                bool save, int64_t precision) {
  const auto run = [&](auto scalar) {
    using S = decltype(scalar);
    const Call call = make_call<S>(x, routing_weights, tensors, offsets, ints, factors, scalings, precision);
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

std::vector<at::Tensor> backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& routing_weights, at::TensorList tensors,
                                 c10::ArrayRef<double> offsets, at::IntArrayRef ints, at::TensorList factors,
                                 c10::ArrayRef<double> scalings, at::TensorList kept, bool base_grads) {
  const auto run = [&](auto scalar) {
    using S = decltype(scalar);
    const Call call = make_call<S>(x, routing_weights, tensors, offsets, ints, factors, scalings, static_cast<int64_t>(Precision::exact));
    const Saved saved{{kept[0], kept[1], kept[2]}, kept[3], kept.slice(4, factors.size() / 2).vec()};
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
  const std::vector<Weight> weights = restore(tensors, offsets, ints);
  const auto run = [&](auto scalar) {
    using S = decltype(scalar);
    const Term term{{x.contiguous()}, &weights[0], static_cast<Precision>(precision), x.scalar_type() == at::kBFloat16};
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
