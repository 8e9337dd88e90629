// From the gradients of a router's outputs to those of its two projections, in closed form. moe_kernels/routing.py has the formulas.
//
// T tokens, K experts per token, E experts.

#pragma once

#include <ATen/Parallel.h>

#include <numeric>
#include <vector>

#include "routing.h"

namespace moe::routing {

// What the forward left and the gradients of its outputs, all in Wide; what is absent is null.
template <typename Wide>
struct Saved {
  int64_t tokens, experts, top_k;
  Kind kind;
  const Wide* dweights;      // [T, K]
  const Wide* dimportance;   // [E]
  const Wide* dload;         // [E]
  const Wide* logits;        // [T, E]
  const Wide* saved;         // [2, T, E] or [1, T, E]: see the forward
  const int64_t* chosen;     // [T, K]
  const int64_t* sequences;  // [T]
  const bool* mask;          // [T]
  Wide* dclean;              // [T, E], in: the gradient of the logits; out: that of x·Wg
  Wide* draw;                // [T, E], out if noisy: the gradient of x·Wnoise

  bool counts(int64_t t) const { return !mask || mask[t]; }
  const Wide* raw(int64_t t) const { return saved + t * experts; }
  const Wide* normals(int64_t t) const { return saved + (tokens + t) * experts; }

  // The gradient of weight k of token t, its share in the importance included.
  Wide of_weight(int64_t t, int64_t k) const {
    const Wide own = dweights ? dweights[t * top_k + k] : 0;
    return dimportance && counts(t) ? own + dimportance[chosen[t * top_k + k]] : own;
  }
};

// What a thread works with.
template <typename Wide>
struct Scratch {
  std::vector<Wide> noisy, dnoisy, dstd, probabilities;
  std::vector<int64_t> all;     // experts 0..E-1
  std::vector<bool> is_chosen;  // [E]

  explicit Scratch(int64_t experts)
      : noisy(experts), dnoisy(experts), dstd(experts), probabilities(experts), all(experts), is_chosen(experts) {
    std::iota(all.begin(), all.end(), 0);
  }
};

// dnoisy += what comes through the weights and the importance: the derivative of a softmax.
template <typename Wide>
void differentiate_weights(const Saved<Wide>& p, int64_t t, const Wide* values, Scratch<Wide>& scratch) {
  const int64_t* chosen = p.chosen + t * p.top_k;
  Wide* probabilities = scratch.probabilities.data();
  if (p.kind.over_all) {  // K = 1
    softmax(values, scratch.all.data(), p.experts, values[chosen[0]], probabilities);
    const Wide inner = p.of_weight(t, 0) * probabilities[chosen[0]];
    for (int64_t e = 0; e < p.experts; ++e) scratch.dnoisy[e] += probabilities[e] * ((e == chosen[0] ? p.of_weight(t, 0) : 0) - inner);
    return;
  }
  softmax(values, chosen, p.top_k, values[chosen[0]], probabilities);
  Wide inner = 0;
  for (int64_t k = 0; k < p.top_k; ++k) inner += probabilities[k] * p.of_weight(t, k);
  for (int64_t k = 0; k < p.top_k; ++k) scratch.dnoisy[chosen[k]] += probabilities[k] * (p.of_weight(t, k) - inner);
}

// The derivative of the normal distribution function of (clean - threshold) / std, where the threshold is the value of expert
// `next`, the first that is left out, for those that are chosen, and of `last`, the last chosen, for the others.
template <typename Wide>
void differentiate_load(const Saved<Wide>& p, int64_t t, const Wide* values, Wide* dclean, Scratch<Wide>& scratch) {
  const int64_t* chosen = p.chosen + t * p.top_k;
  std::vector<bool>& is_chosen = scratch.is_chosen;
  std::fill(is_chosen.begin(), is_chosen.end(), false);
  for (int64_t k = 0; k < p.top_k; ++k) is_chosen[chosen[k]] = true;
  const int64_t last = chosen[p.top_k - 1];
  int64_t next = -1;
  for (int64_t e = 0; e < p.experts; ++e) {
    if (!is_chosen[e] && (next < 0 || before(values, e, next))) next = e;
  }
  for (int64_t e = 0; e < p.experts; ++e) {
    const int64_t other = is_chosen[e] ? next : last;
    const Wide std = clamped_std(p.raw(t)[e]), z = (p.logits[t * p.experts + e] - values[other]) / std;
    const Wide dload = p.counts(t) ? p.dload[e] : 0;
    const Wide dmargin = dload * std::exp(Wide(-0.5) * z * z) * Wide(0.3989422804014327) / std;
    dclean[e] += dmargin;
    scratch.dnoisy[other] -= dmargin;
    if (!(softplus(p.raw(t)[e]) < Wide(kSmallestStd))) scratch.dstd[e] -= dmargin * z;  // the clamp holds below
  }
}

// The gradients of token t's logits, of all kinds but sequence.
template <typename Wide>
void differentiate(const Saved<Wide>& p, int64_t t, Scratch<Wide>& scratch) {
  const Wide* clean = p.logits + t * p.experts;
  const Wide* values = clean;
  if (p.kind.noisy) {
    for (int64_t e = 0; e < p.experts; ++e) scratch.noisy[e] = clean[e] + p.normals(t)[e] * softplus(p.raw(t)[e]);
    values = scratch.noisy.data();
  }
  std::fill(scratch.dnoisy.begin(), scratch.dnoisy.end(), Wide(0));
  std::fill(scratch.dstd.begin(), scratch.dstd.end(), Wide(0));
  Wide* dclean = p.dclean + t * p.experts;
  if (p.dweights || p.dimportance) differentiate_weights(p, t, values, scratch);
  if (p.dload) differentiate_load(p, t, values, dclean, scratch);
  for (int64_t e = 0; e < p.experts; ++e) {
    dclean[e] += scratch.dnoisy[e];
    if (!p.kind.noisy) continue;
    const Wide dstd = scratch.dstd[e] + scratch.dnoisy[e] * p.normals(t)[e];
    p.draw[t * p.experts + e] = dstd * softplus_derivative(p.raw(t)[e]);
  }
}

// Kind sequence: the straight-through weights have the gradient of the log-probability of their choice; the voters share it.
template <typename Wide>
void differentiate_sequences(const Saved<Wide>& p) {
  std::vector<Wide> dlog(p.tokens), votes(p.tokens), probabilities(p.experts);
  std::vector<int64_t> all(p.experts);
  std::iota(all.begin(), all.end(), 0);
  for (int64_t t = 0; t < p.tokens; ++t) {
    const int64_t s = checked_sequence(p.sequences[t], p.tokens);
    dlog[s] += p.of_weight(t, 0);
    votes[s] += p.counts(t) ? 1 : 0;
  }
  for (int64_t t = 0; t < p.tokens; ++t) {
    if (!p.counts(t)) continue;
    const int64_t s = p.sequences[t], chosen = p.chosen[t];
    const Wide* mean = p.saved + t * p.experts;
    softmax(mean, all.data(), p.experts, mean[chosen], probabilities.data());
    for (int64_t e = 0; e < p.experts; ++e) {
      p.dclean[t * p.experts + e] += dlog[s] * ((e == chosen ? 1 : 0) - probabilities[e]) / votes[s];
    }
  }
}

// The gradients of both projections of all tokens.
template <typename Wide>
void differentiate_choice(const Saved<Wide>& p) {
  for (int64_t n = 0; n < p.tokens * p.top_k; ++n) {
    TORCH_CHECK_VALUE(0 <= p.chosen[n] && p.chosen[n] < p.experts, "expert ", p.chosen[n], " lies outside 0..", p.experts - 1);
  }
  if (p.kind.sequence) return differentiate_sequences(p);
  constexpr int64_t kProductsPerExpert = 64;  // what the exponentials of one expert cost
  at::parallel_for(0, p.tokens, grain(p.experts * kProductsPerExpert), [&](int64_t begin, int64_t end) {
    Scratch<Wide> scratch(p.experts);
    for (int64_t t = begin; t < end; ++t) differentiate(p, t, scratch);
  });
}

}  // namespace moe::routing
