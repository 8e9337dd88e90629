// Products of rows with the matrix of their expert: the stages of which the operators are made.
//
// T tokens, K experts per token, E experts, N = T*K pairs in expert order. Activations between stages are S [rows, width].

#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "kernels/kernels.h"
#include "parallel.h"
#include "weights.h"

namespace moe {

enum class Precision : int { exact, int8 };

template <typename S>
constexpr at::ScalarType kScalar = std::is_same_v<S, double> ? at::kDouble : at::kFloat;

// A stretch of rows that meet the same expert, at most kMaxRows.
struct Segment {
  int64_t expert;
  int64_t begin;
  int64_t rows;
};

// All rows of a stage.
struct Rows {
  int64_t count;
  std::vector<Segment> experts;    // one for each expert that has rows, of any length
  std::vector<Segment> segments;   // the same in stretches
  const int64_t* order = nullptr;  // the pair at each place, whose token is order / top_k
  int64_t top_k = 1;

  // `count` rows for one matrix.
  static Rows all(int64_t count);
  // N pairs by expert, from their offsets [E+1].
  static Rows by_expert(const at::Tensor& order, const at::Tensor& offsets, int64_t top_k);
};

// Activations [rows of a stage, width], or [T, width] that pairs gather.
struct Input {
  at::Tensor values;
  bool gather = false;
};

// One summand of a product.
struct Term {
  Input x;
  const Weight* weight;
  Precision precision = Precision::exact;
  bool bf16 = false;  // whether the activations are bf16, or would be if they left the operator
};

// The rows of an input as the kernels read them, each segment for itself.
template <typename S>
class PackedRows {
 public:
  PackedRows(const Rows& rows, const Term& term, bool transposed);
  const Packed& operator[](size_t segment) const { return packed_[segment]; }

 private:
  at::Tensor memory_;
  std::vector<Packed> packed_;
};

// Memory of this thread for the results of a task in float or double, aligned to a vector.
void* scratch();

// finish(segment, first column, results) for every segment and every `step` columns of `width`, where fill(segment, first column, results)
// has computed the results: rows of as many columns as the two agree on, at most kMaxColumns.
template <typename S, typename Fill, typename Finish>
void for_each_tile(const Rows& rows, int64_t width, int64_t step, int64_t depth, const Fill& fill, const Finish& finish) {
  const int64_t segments = static_cast<int64_t>(rows.segments.size()), columns = (width + step - 1) / step;
  if (segments == 0) return;
  for_each_task(columns * segments, rows.count / segments * step * depth, [&](int64_t task) {
    S* const results = static_cast<S*>(scratch());
    const size_t segment = static_cast<size_t>(task / columns);  // one after the other: a weight is read from end to end
    const int64_t column = task % columns * step;
    fill(segment, column, results);
    finish(rows.segments[segment], column, results);
  });
}

// scale * sum over the terms of x W_e^T [rows, out], or `transposed` of x W_e [rows, in], into S `out`, whose rows may have a stride.
template <typename S>
void grouped_linear_into(const at::Tensor& out, const Rows& rows, const std::vector<Term>& terms, bool transposed = false,
                         double scale = 1);

template <typename S>
at::Tensor grouped_linear(const Rows& rows, const std::vector<Term>& terms, bool transposed = false, double scale = 1);

// out [T, width] in `dtype`: base (if defined) plus the sum over each token's K rows of y [N, width], in their order.
template <typename S>
at::Tensor combine(const at::Tensor& y, const at::Tensor& inverse, int64_t top_k, const at::Tensor& base, at::ScalarType dtype);

// [E, P, Q]: the sum over each expert's rows of a[n] b[n]^T, or of b[n] a[n]^T [E, Q, P] if `swap`; zeros where it has none.
template <typename S>
at::Tensor grouped_gram(const Rows& rows, int64_t experts, const Input& a, const Input& b, bool swap = false);

}  // namespace moe
