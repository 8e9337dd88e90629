#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include "experts.h"

namespace moe {
namespace {

template <typename S>
struct HiddenGradients {
  at::Tensor preact;   // [N, 2F]: of g beside u
  at::Tensor weights;  // [T, K]: of the routing's
  at::Tensor h;        // [N, F], if wanted
};

// From dh = W2^T dy, computed here of each pair, or given as `shared` [T, F].
template <typename S>
HiddenGradients<S> hidden_gradients(const Call& call, const Saved& saved, const Rows& rows, const at::Tensor& dy, const at::Tensor& shared,
                                    const at::Tensor& v2, bool keep_h) {
  const Kernels<S>& k = kernels<S>();
  const int64_t hidden = call.hidden(), columns = (hidden + kMaxColumns - 1) / kMaxColumns;
  const auto options = call.x.options().dtype(kScalar<S>);
  const Weight& down = call.base.back();
  std::vector<PackedRows<S>> packed;
  if (!shared.defined()) packed.emplace_back(rows, Term{{dy, true}, &down, Precision::exact, call.bf16()}, true);
  if (v2.defined()) packed.emplace_back(rows, Term{{v2}, &call.lora.a[2]}, true);
  const at::Tensor preact = saved.preact.to(kScalar<S>).contiguous();
  HiddenGradients<S> out{
      at::empty({rows.count, 2 * hidden}, options), {}, keep_h ? at::empty({rows.count, hidden}, options) : at::Tensor()};
  // Each column of tiles adds to sums of its own, so that the order of their addition is fixed.
  at::Tensor partial = at::zeros({columns, rows.count}, options);
  S* const dpreact = out.preact.template mutable_data_ptr<S>();
  S* const h = keep_h ? out.h.template mutable_data_ptr<S>() : nullptr;
  S* const sums = partial.mutable_data_ptr<S>();
  const S* const kept = preact.const_data_ptr<S>();
  const S* const products = shared.defined() ? shared.const_data_ptr<S>() : nullptr;
  const at::Tensor weights = call.weights.reshape(-1).index_select(0, saved.grouping.order);  // of each pair in expert order
  const S* const pair_weights = weights.const_data_ptr<S>();

  const auto fill = [&](size_t i, int64_t column, S* results) {
    const Segment& segment = rows.segments[i];
    size_t term = 0;
    if (products == nullptr) {
      k.product_transposed(packed[term++][i], down.matrices[segment.expert], column, {results, kMaxColumns, false});
    } else {
      const int64_t count = std::min(kMaxColumns, hidden - column);
      for (int64_t m = 0; m < segment.rows; ++m) {
        std::copy_n(products + rows.order[segment.begin + m] / rows.top_k * hidden + column, count, results + m * kMaxColumns);
      }
    }
    if (v2.defined()) k.product_transposed(packed[term][i], call.lora.a[2].matrices[segment.expert], column, {results, kMaxColumns, true});
  };
  for_each_tile<S>(rows, hidden, kMaxColumns, call.x.size(1), fill, [&](const Segment& segment, int64_t column, S* results) {
    const int64_t count = std::min(kMaxColumns, hidden - column), at = segment.begin * 2 * hidden + column;
    k.swiglu_backward({results, kMaxColumns, false}, segment.rows, count, kept + at, kept + at + hidden, 2 * hidden,
                      pair_weights + segment.begin, dpreact + at, dpreact + at + hidden,
                      sums + column / kMaxColumns * rows.count + segment.begin,
                      h != nullptr ? h + segment.begin * hidden + column : nullptr, hidden);
  });

  out.weights = at::empty_like(call.weights);
  S* const dweights = out.weights.template mutable_data_ptr<S>();
  for (int64_t n = 0; n < rows.count; ++n) {
    S total = 0;
    for (int64_t c = 0; c < columns; ++c) total += sums[c * rows.count + n];
    dweights[rows.order[n]] = total;
  }
  return out;
}

// The two halves of [N, 2F].
at::Tensor half(const at::Tensor& both, int64_t i) { return both.narrow(1, i * both.size(1) / 2, both.size(1) / 2).contiguous(); }

}  // namespace

template <typename S>
std::vector<at::Tensor> experts_backward(const Call& call, const Saved& saved, const at::Tensor& dy, bool base_grads) {
  const Rows rows = Rows::by_expert(saved.grouping.order, saved.grouping.offsets, call.top_k), tokens = Rows::all(call.x.size(0));
  const Factors& lora = call.lora;
  const int64_t experts = call.num_experts, top_k = call.top_k;
  const bool own = call.own_matrices();
  at::Tensor v2, shared;
  if (!lora.empty()) v2 = grouped_linear<S>(rows, {{{dy, true}, &lora.b[2]}}, true, lora.scalings[2]);
  if (!own) shared = grouped_linear<S>(tokens, {{{dy}, &call.base[2], Precision::exact, call.bf16()}}, true);
  const HiddenGradients<S> hidden = hidden_gradients<S>(call, saved, rows, dy, shared, v2, !lora.empty() || base_grads);

  std::vector<at::Tensor> dfactors;
  std::vector<Term> of_pairs;  // what dx is the sum of, for each pair
  at::Tensor v1, v3;
  if (own) of_pairs.push_back({{hidden.preact}, &call.base[0], Precision::exact, call.bf16()});
  if (!lora.empty()) {
    const at::Tensor dg = half(hidden.preact, 0), du = half(hidden.preact, 1);
    v1 = grouped_linear<S>(rows, {{{dg}, &lora.b[0]}}, true, lora.scalings[0]);
    v3 = grouped_linear<S>(rows, {{{du}, &lora.b[1]}}, true, lora.scalings[1]);
    of_pairs.push_back({{v1}, &lora.a[0]});
    of_pairs.push_back({{v3}, &lora.a[1]});
    const Input x{call.x, true};
    dfactors = {grouped_gram<S>(rows, experts, {v1}, x),          grouped_gram<S>(rows, experts, {saved.z[0]}, {dg}, true),
                grouped_gram<S>(rows, experts, {v3}, x),          grouped_gram<S>(rows, experts, {saved.z[1]}, {du}, true),
                grouped_gram<S>(rows, experts, {v2}, {hidden.h}), grouped_gram<S>(rows, experts, {saved.z[2]}, {dy, true}, true)};
  }
  std::vector<at::Tensor> dbase;
  at::Tensor of_tokens;
  if (own) {
    if (base_grads) {
      dbase = {grouped_gram<S>(rows, experts, {hidden.preact}, {call.x, true}), grouped_gram<S>(rows, experts, {dy, true}, {hidden.h})};
    }
  } else {
    const at::Tensor summed = combine<S>(hidden.preact, saved.grouping.inverse, top_k, {}, kScalar<S>);  // of W1 x and W3 x, [T, 2F]
    const at::Tensor gate = half(summed, 0), up = half(summed, 1);
    of_tokens = grouped_linear<S>(
        tokens, {{{gate}, &call.base[0], Precision::exact, call.bf16()}, {{up}, &call.base[1], Precision::exact, call.bf16()}}, true);
    if (base_grads) {
      const at::Tensor h = combine<S>(hidden.h, saved.grouping.inverse, top_k, {}, kScalar<S>);
      dbase = {grouped_gram<S>(tokens, 1, {gate}, {call.x})[0], grouped_gram<S>(tokens, 1, {up}, {call.x})[0],
               grouped_gram<S>(tokens, 1, {dy}, {h})[0]};
    }
  }
  const at::Tensor pairs = grouped_linear<S>(rows, of_pairs, true);
  std::vector<at::Tensor> out{combine<S>(pairs, saved.grouping.inverse, top_k, of_tokens, call.x.scalar_type()), hidden.weights};
  out.insert(out.end(), dbase.begin(), dbase.end());
  out.insert(out.end(), dfactors.begin(), dfactors.end());
  return out;
}

template std::vector<at::Tensor> experts_backward<float>(const Call&, const Saved&, const at::Tensor&, bool);
template std::vector<at::Tensor> experts_backward<double>(const Call&, const Saved&, const at::Tensor&, bool);

}  // namespace moe
