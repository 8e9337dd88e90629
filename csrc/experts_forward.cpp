#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>

#include "experts.h"

namespace moe {
namespace {

// Rows of [g | u], each W columns wide, as [N, 2F] in another dtype.
template <typename S>
void keep_preact(at::Tensor& preact, const S* results, const Segment& segment, int64_t column, int64_t count, int64_t width) {
  const int64_t stride = preact.size(1), hidden = stride / 2;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, preact.scalar_type(), "keep_preact", [&] {
    scalar_t* const data = preact.mutable_data_ptr<scalar_t>() + segment.begin * stride + column;
    for (int64_t m = 0; m < segment.rows; ++m) {
      const S* const g = results + m * 2 * width;
      for (int64_t j = 0; j < count; ++j) {
        data[m * stride + j] = static_cast<scalar_t>(g[j]);
        data[m * stride + hidden + j] = static_cast<scalar_t>(g[width + j]);
      }
    }
  });
}

// h [N, F]: the gate and up products of each pair, their LoRA, and the activation. In the layout `lora`, `shared` [T, 2F] has the
// products with the base.
template <typename S>
at::Tensor hidden_rows(const Call& call, const Rows& rows, const at::Tensor& shared, Saved& saved, bool save) {
  const Kernels<S>& k = kernels<S>();
  const int64_t hidden = call.hidden(), width = k.width;
  const Weight& base = call.base[0];
  std::vector<PackedRows<S>> x, z;
  if (!shared.defined()) x.emplace_back(rows, Term{{call.x, true}, &base, call.precision, call.bf16()}, false);
  for (size_t i = 0; i < saved.z.size(); ++i) z.emplace_back(rows, Term{{saved.z[i]}, &call.lora.b[i]}, false);
  const at::Tensor weights = call.weights.reshape(-1).index_select(0, saved.grouping.order);  // of each pair in expert order
  const S* const pair_weights = weights.const_data_ptr<S>();
  at::Tensor h = at::empty({rows.count, hidden}, call.x.options().dtype(kScalar<S>));
  S* const data = h.mutable_data_ptr<S>();
  const S* const products = shared.defined() ? shared.const_data_ptr<S>() : nullptr;
  const auto fill = [&](size_t i, int64_t column, S* results) {
    const Segment& segment = rows.segments[i];
    if (products == nullptr) {
      const Matrix& w = base.matrices[segment.expert];
      k.product(x[0][i], &w, column, &w, hidden + column, {results, 2 * width, false});
    } else {
      const int64_t count = std::min(width, hidden - column);
      for (int64_t m = 0; m < segment.rows; ++m) {
        const S* const row = products + rows.order[segment.begin + m] / rows.top_k * 2 * hidden + column;
        std::copy_n(row, count, results + m * 2 * width);
        std::copy_n(row + hidden, count, results + m * 2 * width + width);
      }
    }
    if (call.lora.empty()) return;
    k.product(z[0][i], &call.lora.b[0].matrices[segment.expert], column, nullptr, 0, {results, 2 * width, true});
    k.product(z[1][i], nullptr, 0, &call.lora.b[1].matrices[segment.expert], column, {results, 2 * width, true});
  };
  for_each_tile<S>(rows, hidden, width, 2 * call.x.size(1), fill, [&](const Segment& segment, int64_t column, S* results) {
    const int64_t count = std::min(width, hidden - column);
    if (save) keep_preact(saved.preact, results, segment, column, count, width);
    S* const out = data + segment.begin * hidden + column;
    k.swiglu({results, 2 * width, false}, segment.rows, count, pair_weights + segment.begin, out, hidden);
  });
  return h;
}

}  // namespace

template <typename S>
at::Tensor experts_forward(const Call& call, Saved& saved, bool save) {
  const auto options = call.x.options().dtype(kScalar<S>);
  const Grouping& grouping = saved.grouping;
  const Rows rows = Rows::by_expert(grouping.order, grouping.offsets, call.top_k), tokens = Rows::all(call.x.size(0));
  const Input x{call.x, true};
  if (save) saved.preact = at::empty({rows.count, 2 * call.hidden()}, call.x.options());
  for (size_t i = 0; i < 2 && !call.lora.empty(); ++i) {
    saved.z.push_back(grouped_linear<S>(rows, {{x, &call.lora.a[i]}}, false, call.lora.scalings[i]));
  }
  at::Tensor shared;
  if (!call.own_matrices()) {
    shared = at::empty({call.x.size(0), 2 * call.hidden()}, options);
    for (int64_t i = 0; i < 2; ++i) {
      grouped_linear_into<S>(shared.narrow(1, i * call.hidden(), call.hidden()), tokens,
                             {{{call.x}, &call.base[i], call.precision, call.bf16()}});
    }
  }
  const at::Tensor h = hidden_rows<S>(call, rows, shared, saved, save);
  if (!call.lora.empty()) saved.z.push_back(grouped_linear<S>(rows, {{{h}, &call.lora.a[2]}}, false, call.lora.scalings[2]));
  const at::ScalarType dtype = call.x.scalar_type();
  if (call.own_matrices()) {
    std::vector<Term> terms{{{h}, &call.base[1], call.precision, call.bf16()}};
    if (!call.lora.empty()) terms.push_back({{saved.z[2]}, &call.lora.b[2]});
    return combine<S>(grouped_linear<S>(rows, terms), grouping.inverse, call.top_k, {}, dtype);
  }
  const at::Tensor summed = combine<S>(h, grouping.inverse, call.top_k, {}, kScalar<S>);
  const at::Tensor y = grouped_linear<S>(tokens, {{{summed}, &call.base[2], call.precision, call.bf16()}});
  return combine<S>(grouped_linear<S>(rows, {{{saved.z[2]}, &call.lora.b[2]}}), grouping.inverse, call.top_k, y, dtype);
}

template at::Tensor experts_forward<float>(const Call&, Saved&, bool);
template at::Tensor experts_forward<double>(const Call&, Saved&, bool);

}  // namespace moe
