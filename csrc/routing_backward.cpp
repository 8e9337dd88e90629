// Routing's gradients on the CPU: those of x and of the weights, from those of their products, which are in routing_derivatives.h.
//
// T tokens, K experts per token, E experts, D model width. A token's gradients belong to one thread, and so does a column of the
// weights' gradients, which adds up the tokens in their order: the bits are the same at any number of threads.

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <tuple>

#include "routing_derivatives.h"

namespace {

using namespace moe::routing;

constexpr int64_t kColumns = 128;  // of a task of the weights' gradients: of 8 experts they are 4 KB, which stay in the nearest cache
constexpr int64_t kRows = 256;     // tokens whose products are added up before they join the others: added singly, 65536 lose a digit

// dx = dclean·Wg + draw·Wnoise; draw is null without noise.
template <typename Narrow, typename Wide>
void gradient_of_x(const Wide* dclean, const Wide* draw, const Wide* w_gate, const Wide* w_noise, Narrow* dx, int64_t tokens,
                   int64_t experts, int64_t width) {
  at::parallel_for(0, tokens, grain(experts * width * (draw ? 2 : 1)), [&](int64_t begin, int64_t end) {
    std::vector<Wide> sums(width);
    for (int64_t t = begin; t < end; ++t) {
      std::fill(sums.begin(), sums.end(), Wide(0));
      for (int64_t e = 0; e < experts; ++e) {
        add_scaled(sums.data(), dclean[t * experts + e], w_gate + e * width, width);
        if (draw) add_scaled(sums.data(), draw[t * experts + e], w_noise + e * width, width);
      }
      for (int64_t d = 0; d < width; ++d) dx[t * width + d] = static_cast<Narrow>(sums[d]);
    }
  });
}

// dw = dlogitsᵀ·x of either product.
template <typename Narrow, typename Wide>
void gradient_of_matrix(const Narrow* x, const Wide* dlogits, Wide* dw, int64_t tokens, int64_t experts, int64_t width) {
  at::parallel_for(0, ceil_div(width, kColumns), grain(tokens * experts * kColumns), [&](int64_t begin, int64_t end) {
    std::array<Wide, kColumns> scratch;
    std::vector<Wide> sums(experts * kColumns);
    for (int64_t d = begin * kColumns; d < std::min(end * kColumns, width); d += kColumns) {
      const int64_t columns = std::min(kColumns, width - d);
      for (int64_t first = 0; first < tokens; first += kRows) {
        std::fill(sums.begin(), sums.end(), Wide(0));
        for (int64_t t = first; t < std::min(first + kRows, tokens); ++t) {
          const Wide* values = widen(x + t * width + d, scratch.data(), columns);
          for (int64_t e = 0; e < experts; ++e) add_scaled(&sums[e * kColumns], dlogits[t * experts + e], values, columns);
        }
        for (int64_t e = 0; e < experts; ++e) add_scaled(dw + e * width + d, Wide(1), &sums[e * kColumns], columns);
      }
    }
  });
}

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

Gradients route_backward_cpp(const std::optional<at::Tensor>& dweights, const std::optional<at::Tensor>& dlogits,
                             const std::optional<at::Tensor>& dimportance, const std::optional<at::Tensor>& dload, const at::Tensor& x,
                             const at::Tensor& w_gate, const std::optional<at::Tensor>& w_noise, const std::optional<at::Tensor>& seed,
                             const std::optional<at::Tensor>& sequence_ids, const std::optional<at::Tensor>& mask, const at::Tensor& chosen,
                             const at::Tensor& logits, const at::Tensor& saved, std::string_view kind_name, std::array<bool, 3> needs) {
  const Kind kind(kind_name, w_noise && seed);
  check_inputs(x, w_gate, w_noise, seed, sequence_ids, mask, kind, chosen.size(1));
  const int64_t tokens = x.size(0), width = x.size(1), experts = w_gate.size(0), top_k = chosen.size(1);
  TORCH_CHECK_VALUE(chosen.size(0) == tokens && logits.numel() == tokens * experts && saved.numel() == kind.planes() * logits.numel() &&
                        (!dweights || dweights->sizes() == chosen.sizes()) && (!dlogits || dlogits->sizes() == logits.sizes()) &&
                        (!dimportance || dimportance->numel() == experts) && (!dload || dload->numel() == experts),
                    "the tensors of the backward do not have the sizes of its forward");
  const bool of_load = dload && kind.noisy && top_k < experts;  // else a count of tokens
  const bool of_choice = dweights || dimportance || of_load;
  const bool of_noise = kind.noisy && of_choice;
  needs[2] = needs[2] && w_noise;
  const auto options = x.options().dtype(at::toOpMathType(x.scalar_type()));
  const auto none = [&] { return at::empty({0}, x.options()); };
  const at::Tensor dx = needs[0] ? at::zeros(x.sizes(), x.options()) : none();
  const at::Tensor dgate = needs[1] ? at::zeros(w_gate.sizes(), options) : none();
  const at::Tensor dnoise = needs[2] ? at::zeros(w_gate.sizes(), options) : none();
  const at::Tensor dclean = at::zeros({tokens, experts}, options), draw = at::empty({of_noise ? tokens : 0, experts}, options);
  if (dlogits) dclean.copy_(*dlogits);

  const at::Tensor rows = x.contiguous();
  const Argument<int64_t> experts_of_token(chosen), sequences(kind.sequence ? sequence_ids : std::nullopt);
  const Argument<bool> counting(mask);
  const auto differentiate = [&](auto narrow) {
    using Narrow = decltype(narrow);
    using Wide = at::opmath_type<Narrow>;
    const Argument<Wide> gate(w_gate), noise(kind.noisy ? w_noise : std::nullopt), clean(logits), kept(saved);
    const Argument<Wide> of_weights(dweights), of_importance(dimportance), of_loads(of_load ? dload : std::nullopt);
    const Saved<Wide> p{
        tokens,
        experts,
        top_k,
        kind,
        of_weights.data,
        of_importance.data,
        of_loads.data,
        clean.data,
        kept.data,
        experts_of_token.data,
        sequences.data,
        counting.data,
        dclean.mutable_data_ptr<Wide>(),
        draw.mutable_data_ptr<Wide>(),
    };
    if (of_choice) differentiate_choice(p);
    const Narrow* values = rows.const_data_ptr<Narrow>();
    const Wide* through_noise = of_noise ? p.draw : nullptr;
    if (needs[0]) {
      gradient_of_x(p.dclean, through_noise, gate.data, noise.data, dx.mutable_data_ptr<Narrow>(), tokens, experts, width);
    }
    if (needs[1]) gradient_of_matrix(values, p.dclean, dgate.mutable_data_ptr<Wide>(), tokens, experts, width);
    if (needs[2] && of_noise) gradient_of_matrix(values, p.draw, dnoise.mutable_data_ptr<Wide>(), tokens, experts, width);
  };
  if (dlogits || of_choice) {  // else nothing depends on anything, not even on a NaN
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "route_backward", [&] { differentiate(scalar_t{}); });
  }
  return {dx, needs[1] ? dgate.to(w_gate.scalar_type()) : none(), needs[2] ? dnoise.to(w_noise->scalar_type()) : none()};
}

Gradients empty_outputs(const std::optional<at::Tensor>&, const std::optional<at::Tensor>&, const std::optional<at::Tensor>&,
                        const std::optional<at::Tensor>&, const at::Tensor& x, const at::Tensor& w_gate,
                        const std::optional<at::Tensor>& w_noise, const std::optional<at::Tensor>&, const std::optional<at::Tensor>&,
                        const std::optional<at::Tensor>&, const at::Tensor&, const at::Tensor&, const at::Tensor&, std::string_view,
                        std::array<bool, 3> needs) {
  const auto empty = [&](const at::Tensor& like, bool need) {
    return need ? at::empty_symint(like.sym_sizes(), like.options()) : at::empty({0}, x.options());
  };
  return {empty(x, needs[0]), empty(w_gate, needs[1]), empty(w_noise.value_or(w_gate), needs[2] && w_noise)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(moe_kernels, m) {
  m.def(
      "route_backward_cpp(Tensor? dweights, Tensor? dlogits, Tensor? dimportance, Tensor? dload, Tensor x, Tensor w_gate, "
      "Tensor? w_noise, Tensor? seed, Tensor? sequence_ids, Tensor? mask, Tensor experts, Tensor logits, Tensor saved, str kind, "
      "bool[3] needs) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(moe_kernels, CPU, m) { m.impl("route_backward_cpp", route_backward_cpp); }
TORCH_LIBRARY_IMPL(moe_kernels, Meta, m) { m.impl("route_backward_cpp", empty_outputs); }
