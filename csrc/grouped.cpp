#include "grouped.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

namespace moe {
namespace {

constexpr int64_t kAlignment = 64;

Source source_of(const Rows& rows, const Input& x, int64_t begin) {
  const int64_t stride = x.values.size(1);
  if (x.gather) return {x.values.const_data_ptr(), dtype_of(x.values), stride, rows.order + begin, rows.top_k};
  const char* data = static_cast<const char*>(x.values.const_data_ptr()) + begin * stride * x.values.element_size();
  return {data, dtype_of(x.values), stride};
}

template <typename S>
Layout layout_of(int64_t rows, const Matrix& w, const Term& term, bool transposed, const Kernels<S>& k) {
  // Weights are then cast to bf16, as the reference casts them; of fp16 that would round twice.
  const bool pairs = w.nf4 && term.bf16 && w.dtype != Dtype::f16 && k.has_pairs;
  if (transposed) return pairs ? Layout::row_pairs : Layout::tiles;
  if (!w.nf4) return Layout::tiles;
  if (term.precision == Precision::int8) return Layout::int8;
  if (pairs) return Layout::pairs;
  return rows <= k.decode_rows ? Layout::blocks : Layout::tiles;
}

void add_expert(Rows& rows, int64_t expert, int64_t begin, int64_t end) {
  if (begin == end) return;
  rows.experts.push_back({expert, begin, end - begin});
  const int64_t pieces = (end - begin + kMaxRows - 1) / kMaxRows;
  for (int64_t i = 0; i < pieces; ++i) {
    const int64_t first = begin + (end - begin) * i / pieces;
    rows.segments.push_back({expert, first, begin + (end - begin) * (i + 1) / pieces - first});
  }
}

}  // namespace

void* scratch() {
  alignas(kAlignment) thread_local unsigned char memory[kMaxRows * kMaxColumns * sizeof(double)];
  return memory;
}

Rows Rows::all(int64_t count) {
  Rows rows{count, {}, {}};
  add_expert(rows, 0, 0, count);
  return rows;
}

Rows Rows::by_expert(const at::Tensor& order, const at::Tensor& offsets, int64_t top_k) {
  Rows rows{order.numel(), {}, {}, order.const_data_ptr<int64_t>(), top_k};
  const int64_t* ends = offsets.const_data_ptr<int64_t>();
  for (int64_t e = 0; e + 1 < offsets.numel(); ++e) add_expert(rows, e, ends[e], ends[e + 1]);
  return rows;
}

template <typename S>
PackedRows<S>::PackedRows(const Rows& rows, const Term& term, bool transposed) {
  const Kernels<S>& k = kernels<S>();
  const int64_t columns = term.x.values.size(1);
  std::vector<int64_t> offsets;
  struct Tile {
    size_t segment;
    int64_t tile;
  };
  std::vector<Tile> tiles;
  int64_t bytes = 0;
  for (const Segment& segment : rows.segments) {
    const Matrix& w = term.weight->matrices[term.weight->experts == 1 ? 0 : segment.expert];
    const Layout layout = layout_of(segment.rows, w, term, transposed, k);
    packed_.push_back({nullptr, segment.rows, columns, layout});
    offsets.push_back(bytes);
    bytes += (k.packed_bytes(segment.rows, columns, layout) + kAlignment - 1) / kAlignment * kAlignment;
    for (int64_t t = 0; t < k.tiles(segment.rows, layout); ++t) tiles.push_back({packed_.size() - 1, t});
  }
  memory_ = at::empty({bytes + kAlignment}, term.x.values.options().dtype(at::kByte));
  const auto address = reinterpret_cast<uintptr_t>(memory_.mutable_data_ptr());
  uint8_t* const data = memory_.mutable_data_ptr<uint8_t>() + (kAlignment - address % kAlignment) % kAlignment;
  for (size_t i = 0; i < packed_.size(); ++i) packed_[i].data = data + offsets[i];
  for_each_task(static_cast<int64_t>(tiles.size()), columns * 8, [&](int64_t i) {
    const Tile& tile = tiles[static_cast<size_t>(i)];
    k.pack(source_of(rows, term.x, rows.segments[tile.segment].begin), packed_[tile.segment], tile.tile);
  });
}

template <typename S>
void grouped_linear_into(const at::Tensor& out, const Rows& rows, const std::vector<Term>& terms, bool transposed, double scale) {
  const Kernels<S>& k = kernels<S>();
  const int64_t width = out.size(1), stride = out.stride(0);
  const int64_t step = transposed ? kMaxColumns : 2 * k.width;
  std::vector<PackedRows<S>> packed;
  int64_t depth = 0;
  for (const Term& term : terms) {
    packed.emplace_back(rows, term, transposed);
    depth += term.x.values.size(1);
  }
  S* const data = out.mutable_data_ptr<S>();
  const auto fill = [&](size_t segment, int64_t column, S* results) {
    for (size_t i = 0; i < terms.size(); ++i) {
      const Matrix& w = terms[i].weight->matrices[terms[i].weight->experts == 1 ? 0 : rows.segments[segment].expert];
      const Results<S> to{results, step, i > 0};
      if (transposed) {
        k.product_transposed(packed[i][segment], w, column, to);
      } else {
        k.product(packed[i][segment], &w, column, column + k.width < width ? &w : nullptr, column + k.width, to);
      }
    }
  };
  for_each_tile<S>(rows, width, step, depth, fill, [&](const Segment& segment, int64_t column, S* results) {
    const int64_t count = std::min(step, width - column);
    S* const to = data + segment.begin * stride + column;
    for (int64_t m = 0; m < segment.rows; ++m) {
      for (int64_t j = 0; j < count; ++j) to[m * stride + j] = results[m * step + j] * static_cast<S>(scale);
    }
  });
}

template <typename S>
at::Tensor grouped_linear(const Rows& rows, const std::vector<Term>& terms, bool transposed, double scale) {
  const int64_t width = transposed ? terms[0].weight->columns : terms[0].weight->rows;
  const at::Tensor out = at::empty({rows.count, width}, terms[0].x.values.options().dtype(kScalar<S>));
  grouped_linear_into<S>(out, rows, terms, transposed, scale);
  return out;
}

template <typename S>
at::Tensor combine(const at::Tensor& y, const at::Tensor& inverse, int64_t top_k, const at::Tensor& base, at::ScalarType dtype) {
  const int64_t tokens = inverse.numel() / top_k, width = y.size(1);
  at::Tensor out = at::empty({tokens, width}, y.options().dtype(dtype));
  const S* const rows = y.const_data_ptr<S>();
  const S* const bases = base.defined() ? base.const_data_ptr<S>() : nullptr;
  const int64_t* const places = inverse.const_data_ptr<int64_t>();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, dtype, "combine", [&] {
    scalar_t* const data = out.mutable_data_ptr<scalar_t>();
    constexpr int64_t kPiece = 256;
    const int64_t pieces = (width + kPiece - 1) / kPiece;
    for_each_task(tokens * pieces, kPiece * (top_k + 1), [&](int64_t task) {
      const int64_t t = task / pieces, begin = task % pieces * kPiece, count = std::min(kPiece, width - begin);
      S sums[kPiece];
      for (int64_t j = 0; j < count; ++j) sums[j] = bases != nullptr ? bases[t * width + begin + j] : S(0);
      for (int64_t i = 0; i < top_k; ++i) {
        const S* const row = rows + places[t * top_k + i] * width + begin;
        for (int64_t j = 0; j < count; ++j) sums[j] += row[j];
      }
      for (int64_t j = 0; j < count; ++j) data[t * width + begin + j] = static_cast<scalar_t>(sums[j]);
    });
  });
  return out;
}

template <typename S>
at::Tensor grouped_gram(const Rows& rows, int64_t experts, const Input& a, const Input& b, bool swap) {
  const int64_t p = a.values.size(1), q = b.values.size(1);
  at::Tensor out = at::zeros(swap ? at::IntArrayRef{experts, q, p} : at::IntArrayRef{experts, p, q}, a.values.options().dtype(kScalar<S>));
  for (const Segment& expert : rows.experts) {
    const auto rows_of = [&](const Input& x) {
      if (!x.gather) return x.values.narrow(0, expert.begin, expert.rows);
      at::Tensor tokens = at::empty({expert.rows}, x.values.options().dtype(at::kLong));
      int64_t* const data = tokens.mutable_data_ptr<int64_t>();
      for (int64_t i = 0; i < expert.rows; ++i) data[i] = rows.order[expert.begin + i] / rows.top_k;
      return x.values.index_select(0, tokens);
    };
    const Weight right = dense_weight(rows_of(b));  // [rows, q]: the reduction runs over its rows
    const at::Tensor product = grouped_linear<S>(Rows::all(p), {{{rows_of(a).t().contiguous()}, &right}}, true);
    out[expert.expert].copy_(swap ? product.t() : product);
  }
  return out;
}

#define MOE_INSTANTIATE(S)                                                                                          \
  template class PackedRows<S>;                                                                                     \
  template void grouped_linear_into<S>(const at::Tensor&, const Rows&, const std::vector<Term>&, bool, double);     \
  template at::Tensor grouped_linear<S>(const Rows&, const std::vector<Term>&, bool, double);                       \
  template at::Tensor combine<S>(const at::Tensor&, const at::Tensor&, int64_t, const at::Tensor&, at::ScalarType); \
  template at::Tensor grouped_gram<S>(const Rows&, int64_t, const Input&, const Input&, bool);
MOE_INSTANTIATE(float)
MOE_INSTANTIATE(double)

}  // namespace moe
