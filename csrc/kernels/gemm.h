// Many rows of activations: a panel of the weight is expanded once and meets every tile of rows. Lanes run over the outputs.
//
// A tile of 12 rows and 2 vectors of outputs takes 24 FMA, 2 loads of the panel and 12 broadcasts of activations a column.

// to[M, V * W] (+)= a [depth, M] times panel [depth, V * W].
template <int M, int V>
void tile(const S* a, const S* panel, int64_t depth, const Results<S>& to) {
  Vec acc[M][V];
  const auto each = [](auto f) MOE_INLINE { repeat<M>([f](auto m) MOE_INLINE { repeat<V>([f, m](auto v) MOE_INLINE { f(m, v); }); }); };
  each([&](auto m, auto v) MOE_INLINE { acc[m][v] = to.add ? load(to.data + m * to.stride + v * W) : zero(); });
  for (int64_t k = 0; k < depth; ++k) {
    Vec b[V];
    repeat<V>([&](auto v) MOE_INLINE { b[v] = load(panel + (k * V + v) * W); });
    repeat<M>([&](auto m) MOE_INLINE {
      const Vec x = set1(a[k * M + m]);
      repeat<V>([&](auto v) MOE_INLINE { acc[m][v] = fma(x, b[v], acc[m][v]); });
    });
  }
  each([&](auto m, auto v) MOE_INLINE { store(to.data + m * to.stride + v * W, acc[m][v]); });
}

using Tile = void (*)(const S*, const S*, int64_t, const Results<S>&);

template <int V, int... M>
constexpr std::array<Tile, sizeof...(M)> tiles_of(std::integer_sequence<int, M...>) {
  return {tile<M + 1, V>...};
}

constexpr auto kTilesOfOne = tiles_of<1>(std::make_integer_sequence<int, kTileRows>());
constexpr auto kTilesOfTwo = tiles_of<2>(std::make_integer_sequence<int, kTileRows>());

// Rows are dealt out evenly: 13 rows are tiles of 7 and 6.
constexpr int64_t num_tiles(int64_t rows) { return (rows + kTileRows - 1) / kTileRows; }
constexpr int64_t tile_begin(int64_t rows, int64_t t) { return t * rows / num_tiles(rows); }

// One panel with every tile of the activations, whose columns `begin`.. it belongs to.
inline void multiply_panel(const Packed& x, int64_t begin, int64_t depth, const S* panel, int vectors, const Results<S>& to) {
  const S* const data = static_cast<const S*>(x.data);
  const int64_t tiles = num_tiles(x.rows);
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t row = tile_begin(x.rows, t), rows = tile_begin(x.rows, t + 1) - row;
    const auto kernel = (vectors == 2 ? kTilesOfTwo : kTilesOfOne)[static_cast<size_t>(rows - 1)];
    kernel(data + row * x.columns + begin * rows, panel, depth, {to.data + row * to.stride, to.stride, to.add});
  }
}

inline void panel_product(const Packed& x, const Matrix* first, int64_t first_row, const Matrix* second, int64_t second_row,
                          const Results<S>& to) {
  alignas(64) S panel[kDepth * 2 * W];
  alignas(64) float absmax[2][W][kWindow];
  const int vectors = (first != nullptr) + (second != nullptr);
  for (int64_t begin = 0; begin < x.columns; begin += kDepth) {
    const int64_t depth = std::min(kDepth, x.columns - begin), block = begin / kBlock;
    const auto fill = [&](const Matrix& w, int64_t row, int v) {
      if (!w.nf4) return fill_dense(w, row, begin, depth, panel + v * W, vectors * W);
      if (block % kWindow == 0) decode_window(w, row, block, std::min(kWindow, w.columns / kBlock - block), absmax[v]);
      fill_nf4(w, row, begin, depth, absmax[v], block % kWindow, panel + v * W, vectors * W);
    };
    if (first != nullptr) fill(*first, first_row, 0);
    if (second != nullptr) fill(*second, second_row, vectors - 1);
    multiply_panel(x, begin, depth, panel, vectors, {to.data + (first != nullptr ? 0 : W), to.stride, to.add || begin > 0});
  }
}

// Columns that lie in the order of expansion, or not, into theirs.
inline void put_in_order(const S* sums, int64_t rows, int64_t columns, bool expanded, const Results<S>& to) {
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t j = 0; j < columns; ++j) {
      S& out = to.data[m * to.stride + (expanded ? column_of(j / W, j % W) : j)];
      out = (to.add ? out : S(0)) + sums[m * kMaxColumns + j];
    }
  }
}

inline void panel_product_transposed(const Packed& x, const Matrix& w, int64_t begin, const Results<S>& to) {
  constexpr int64_t kRows = kDepth * 2 * W / kMaxColumns;  // of a panel as large as above
  alignas(64) S panel[kRows * kMaxColumns];
  alignas(64) S sums[kMaxRows * kMaxColumns];
  const int64_t columns = std::min(kMaxColumns, w.columns - begin);
  for (int64_t n = 0; n < w.rows; n += kRows) {
    const int64_t depth = std::min(kRows, w.rows - n);
    fill_transposed(w, n, depth, begin, columns, panel);
    for (int64_t part = 0; part < kParts; part += 2) {
      multiply_panel(x, n, depth, panel + part * depth * W, 2, {sums + part * W, kMaxColumns, n > 0});
    }
  }
  put_in_order(sums, x.rows, columns, w.nf4, to);
}
