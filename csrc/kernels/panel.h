// Panels: a stretch of a weight's values as the tile kernels of gemm.h read them, expanded into the L1 and L2 caches.

constexpr int64_t kDepth = 256;  // columns of a panel of 2 W rows: 32 KB with AVX-512

// `count` values of a row of a dense matrix from column `begin`.
inline void read_dense(const Matrix& w, int64_t row, int64_t begin, int64_t count, S* out) {
  const int64_t first = row * w.columns + begin;
  switch (w.dtype) {
    case Dtype::f32:
      return convert(static_cast<const float*>(w.values) + first, count, out);
    case Dtype::bf16:
      return convert(static_cast<const c10::BFloat16*>(w.values) + first, count, out);
    case Dtype::f16:
      return convert(static_cast<const c10::Half*>(w.values) + first, count, out);
    case Dtype::f64:
      return convert(static_cast<const double*>(w.values) + first, count, out);
  }
}

// panel[k * stride + lane] = w[first_row + lane, begin + k]; zeros for rows beyond the last. `begin` starts a block of NF4, which is
// block `block` of the window.
inline void fill_nf4(const Matrix& w, int64_t first_row, int64_t begin, int64_t depth, const float (*absmax)[kWindow], int64_t block,
                     S* panel, int64_t stride) {
  const int64_t rows = std::min(W, w.rows - first_row), blocks = depth / kBlock;
  prefetch_next(w, first_row, W, begin, depth);
  Vec values[kParts][W];
  for (int64_t r = rows; r < W; ++r) {
    for (auto& part : values) part[r] = zero();
  }
  for (int64_t b = 0; b < blocks; ++b) {
    for (int64_t r = 0; r < rows; ++r) {
      const Table table = make_table(absmax[r][block + b], w.dtype);
      const int64_t first = (first_row + r) * w.columns + begin + b * kBlock;
      const Nibbles nibbles = load_nibbles(static_cast<const uint8_t*>(w.values) + first / 2);
      for (int part = 0; part < kParts; ++part) values[part][r] = expand(nibbles, table, part);
    }
    for (int part = 0; part < kParts; ++part) {
      Vec v[W];
      for (int64_t i = 0; i < W; ++i) v[i] = values[part][i];
      transpose(v);
      for (int64_t i = 0; i < W; ++i) store(panel + (b * kBlock + column_of(part, i)) * stride, v[i]);
    }
  }
}

inline void fill_dense(const Matrix& w, int64_t first_row, int64_t begin, int64_t depth, S* panel, int64_t stride) {
  const int64_t rows = std::min(W, w.rows - first_row);
  S values[W][kDepth];
  for (int64_t r = 0; r < rows; ++r) read_dense(w, first_row + r, begin, depth, values[r]);
  for (int64_t r = rows; r < W; ++r) std::fill_n(values[r], depth, S(0));
  int64_t k = 0;
  for (; k + W <= depth; k += W) {
    Vec v[W];
    for (int64_t r = 0; r < W; ++r) v[r] = load(values[r] + k);
    transpose(v);
    for (int64_t i = 0; i < W; ++i) store(panel + (k + i) * stride, v[i]);
  }
  for (; k < depth; ++k) {
    for (int64_t r = 0; r < W; ++r) panel[k * stride + r] = values[r][k];
  }
}

// panel[column / 2W][row][2W] = w[begin + row, first_column + column] for one block of 64 columns, those of NF4 in order of expansion.
inline void fill_transposed(const Matrix& w, int64_t begin, int64_t depth, int64_t first_column, int64_t columns, S* panel) {
  for (int64_t n = 0; n < depth; ++n) {
    S* const row = panel + n * 2 * W;
    const auto place = [&](int64_t vec) { return row + (vec / 2) * depth * 2 * W + (vec % 2) * W; };
    if (w.nf4) {
      const int64_t first = (begin + n) * w.columns + first_column;
      float absmax;
      decode_absmax(w, first / kBlock, 1, &absmax);
      const Table table = make_table(absmax, w.dtype);
      const Nibbles nibbles = load_nibbles(static_cast<const uint8_t*>(w.values) + first / 2);
      for (int part = 0; part < kParts; ++part) store(place(part), expand(nibbles, table, part));
    } else {
      S values[kMaxColumns] = {};
      read_dense(w, begin + n, first_column, columns, values);
      for (int64_t vec = 0; vec < kParts; ++vec) store(place(vec), load(values + vec * W));
    }
  }
}
