// Routing forward on the CPU. moe_kernels/routing.py has the formulas, routing_reference.py their reference.
//
// T tokens, K experts per token, E experts, D model width.

#include "routing.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <numeric>
#include <tuple>
#include <vector>

#include "noise.h"

namespace {

using namespace moe::routing;

// Where a call reads and writes; what its kind has no use for is null.
template <typename Narrow, typename Wide>
struct Pointers {
  int64_t tokens, width, experts, top_k;
  Kind kind;
  uint64_t seed;
  const Narrow* x;           // [T, D]
  const Wide* w_gate;        // [E, D]
  const Wide* w_noise;       // [E, D], read if noisy
  const int64_t* sequences;  // [T]
  const bool* mask;          // [T]
  Wide* weights;             // [T, K]
  int64_t* chosen;           // [T, K]
  Wide* logits;              // [T, E]
  Wide* saved;               // [2, T, E]: x·Wnoise and the normals; or [1, T, E]: the mean logits of each token's sequence

  bool counts(int64_t t) const { return !mask || mask[t]; }
  Wide* raw(int64_t t) const { return saved + t * experts; }
  Wide* normals(int64_t t) const { return saved + (tokens + t) * experts; }
};

// What a thread works with.
template <typename Narrow, typename Wide>
struct Scratch {
  std::vector<Wide> token, noisy, probabilities;
  std::vector<int64_t> all, order;  // experts 0..E-1, and those in descending order of their values

  explicit Scratch(const Pointers<Narrow, Wide>& p)
      : token(std::is_same_v<Narrow, Wide> ? 0 : p.width), noisy(p.experts), probabilities(p.experts), all(p.experts), order(p.experts) {
    std::iota(all.begin(), all.end(), 0);
  }
};

// The logits of token t, and with noise what `saved` keeps of it.
template <typename Narrow, typename Wide>
void project(const Pointers<Narrow, Wide>& p, int64_t t, Scratch<Narrow, Wide>& scratch) {
  const Wide* token = widen(p.x + t * p.width, scratch.token.data(), p.width);
  for (int64_t e = 0; e < p.experts; ++e) {
    p.logits[t * p.experts + e] = dot(token, p.w_gate + e * p.width, p.width);
    if (!p.kind.noisy) continue;
    p.raw(t)[e] = dot(token, p.w_noise + e * p.width, p.width);
    p.normals(t)[e] = moe::standard_normal(p.seed, static_cast<uint64_t>(t * p.experts + e));
  }
}

// saved = the mean of the logits over the counting tokens of each token's sequence (0 if none counts)
template <typename Narrow, typename Wide>
void average_sequences(const Pointers<Narrow, Wide>& p) {
  std::vector<Wide> sums(p.tokens * p.experts), votes(p.tokens);
  for (int64_t t = 0; t < p.tokens; ++t) {
    const int64_t s = checked_sequence(p.sequences[t], p.tokens);
    if (!p.counts(t)) continue;
    add_scaled(sums.data() + s * p.experts, Wide(1), p.logits + t * p.experts, p.experts);
    votes[s] += 1;
  }
  for (int64_t t = 0; t < p.tokens; ++t) {
    const int64_t s = p.sequences[t];
    for (int64_t e = 0; e < p.experts; ++e) p.saved[t * p.experts + e] = sums[s * p.experts + e] / std::max<Wide>(votes[s], 1);
  }
}

// Weights and experts of token t; where it counts, it joins its tile's sums `importance` and `load` [E].
template <typename Narrow, typename Wide>
void choose(const Pointers<Narrow, Wide>& p, int64_t t, Scratch<Narrow, Wide>& scratch, Wide* importance, Wide* load) {
  const Wide* clean = p.logits + t * p.experts;
  const Wide* values = p.kind.sequence ? p.saved + t * p.experts : clean;
  if (p.kind.noisy) {
    for (int64_t e = 0; e < p.experts; ++e) scratch.noisy[e] = clean[e] + p.normals(t)[e] * softplus(p.raw(t)[e]);
    values = scratch.noisy.data();
  }
  std::vector<int64_t>& order = scratch.order;
  order = scratch.all;
  const auto first_left_out = order.begin() + std::min(p.top_k + 1, p.experts);  // the load needs it too
  std::partial_sort(order.begin(), first_left_out, order.end(), [&](int64_t a, int64_t b) { return before(values, a, b); });

  if (p.kind.over_all) {
    softmax(values, scratch.all.data(), p.experts, values[order[0]], scratch.probabilities.data());
  } else {
    softmax(values, order.data(), p.top_k, values[order[0]], scratch.probabilities.data());
  }
  Wide* weights = p.weights + t * p.top_k;
  for (int64_t k = 0; k < p.top_k; ++k) {
    p.chosen[t * p.top_k + k] = order[k];
    weights[k] = scratch.probabilities[p.kind.over_all ? order[k] : k];
    if (p.kind.sequence) weights[k] /= weights[k];  // 1, or NaN
  }

  if (!p.counts(t)) return;
  for (int64_t k = 0; k < p.top_k; ++k) importance[order[k]] += weights[k];
  if (!p.kind.noisy || p.top_k == p.experts) {
    for (int64_t k = 0; k < p.top_k; ++k) load[order[k]] += 1;
    return;
  }
  for (int64_t place = 0; place < p.experts; ++place) {
    const int64_t e = order[place];
    load[e] += normal_cdf((clean[e] - values[order[place < p.top_k ? p.top_k : p.top_k - 1]]) / clamped_std(p.raw(t)[e]));
  }
}

// Everything but the sums over all tokens; `partial` [tiles, 2, E] has those over the tiles.
template <typename Narrow, typename Wide>
void route(const Pointers<Narrow, Wide>& p, Wide* partial) {
  const int64_t products = p.experts * p.width * (p.kind.noisy ? 2 : 1);
  if (p.kind.sequence) {
    at::parallel_for(0, p.tokens, grain(products), [&](int64_t begin, int64_t end) {
      Scratch<Narrow, Wide> scratch(p);
      for (int64_t t = begin; t < end; ++t) project(p, t, scratch);
    });
    average_sequences(p);
  }
  at::parallel_for(0, ceil_div(p.tokens, kTile), grain(products * kTile), [&](int64_t begin, int64_t end) {
    Scratch<Narrow, Wide> scratch(p);
    for (int64_t tile = begin; tile < end; ++tile) {
      Wide* importance = partial + tile * 2 * p.experts;
      for (int64_t t = tile * kTile; t < std::min((tile + 1) * kTile, p.tokens); ++t) {
        if (!p.kind.sequence) project(p, t, scratch);
        choose(p, t, scratch, importance, importance + p.experts);
      }
    }
  });
}

using Outputs = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

Outputs empty_outputs(const at::Tensor& x, const at::Tensor& w_gate, const std::optional<at::Tensor>& w_noise,
                      const std::optional<at::Tensor>& seed, const std::optional<at::Tensor>&, const std::optional<at::Tensor>&,
                      std::string_view kind_name, int64_t top_k) {
  const Kind kind(kind_name, w_noise && seed);
  const c10::SymInt tokens = x.sym_size(0), experts = w_gate.sym_size(0);
  const auto options = x.options().dtype(at::toOpMathType(x.scalar_type()));
  const auto empty = [&](c10::SymIntArrayRef shape) { return at::empty_symint(shape, options); };
  return {empty({tokens, top_k}),   at::empty_symint({tokens, top_k}, options.dtype(at::kLong)),
          empty({tokens, experts}), empty({experts}),
          empty({experts}),         empty({kind.planes(), tokens, experts})};
}

Outputs route_cpp(const at::Tensor& x, const at::Tensor& w_gate, const std::optional<at::Tensor>& w_noise,
                  const std::optional<at::Tensor>& seed, const std::optional<at::Tensor>& sequence_ids,
                  const std::optional<at::Tensor>& mask, std::string_view kind_name, int64_t top_k) {
  const Kind kind(kind_name, w_noise && seed);
  check_inputs(x, w_gate, w_noise, seed, sequence_ids, mask, kind, top_k);
  const int64_t experts = w_gate.size(0);
  at::Tensor weights, chosen, logits, importance, load, saved;
  std::tie(weights, chosen, logits, importance, load, saved) =
      empty_outputs(x, w_gate, w_noise, seed, sequence_ids, mask, kind_name, top_k);
  const at::Tensor partial = at::zeros({ceil_div(x.size(0), kTile), 2, experts}, logits.options());

  const at::Tensor rows = x.contiguous();
  const Argument<int64_t> sequences(kind.sequence ? sequence_ids : std::nullopt);
  const Argument<bool> counting(mask);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "route", [&] {
    using Wide = at::opmath_type<scalar_t>;
    const Argument<Wide> gate(w_gate), noise(kind.noisy ? w_noise : std::nullopt);
    const Pointers<scalar_t, Wide> pointers{
        x.size(0),
        x.size(1),
        experts,
        top_k,
        kind,
        kind.noisy ? static_cast<uint64_t>(seed->item<int64_t>()) : 0,
        rows.const_data_ptr<scalar_t>(),
        gate.data,
        noise.data,
        sequences.data,
        counting.data,
        weights.mutable_data_ptr<Wide>(),
        chosen.mutable_data_ptr<int64_t>(),
        logits.mutable_data_ptr<Wide>(),
        saved.mutable_data_ptr<Wide>(),
    };
    Wide* of_tiles = partial.mutable_data_ptr<Wide>();
    route(pointers, of_tiles);
    Wide* importance_sums = importance.zero_().mutable_data_ptr<Wide>();
    Wide* load_sums = load.zero_().mutable_data_ptr<Wide>();
    for (int64_t tile = 0; tile < partial.size(0); ++tile) {
      add_scaled(importance_sums, Wide(1), of_tiles + tile * 2 * experts, experts);
      add_scaled(load_sums, Wide(1), of_tiles + (tile * 2 + 1) * experts, experts);
    }
  });
  return {weights, chosen, logits, importance, load, saved};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(moe_kernels, m) {
  m.def(
      "route_cpp(Tensor x, Tensor w_gate, Tensor? w_noise, Tensor? seed, Tensor? sequence_ids, Tensor? mask, str kind, int top_k) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(moe_kernels, CPU, m) { m.impl("route_cpp", route_cpp); }
TORCH_LIBRARY_IMPL(moe_kernels, Meta, m) { m.impl("route_cpp", empty_outputs); }
