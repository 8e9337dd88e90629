// Products by pairs of bf16: decode.h and gemm.h over again, with two columns a lane and half the instructions.

constexpr int kPairDecodeRows = 10;   // beyond, panels are as fast
constexpr int64_t kChunkGroups = 64;  // of one row of pairs: 16 KB

inline int64_t pair_groups(int64_t columns) { return (columns + kGroup - 1) / kGroup; }
inline int64_t pair_bytes(int64_t rows, int64_t columns) { return rows * pair_groups(columns) * kGroupPairs * 4; }

// Few rows: [group][part][row][pair]; many: [tile][group][part][pair][row of the tile]. Columns beyond the last are zeros.
template <typename From>
void pack_pairs(const From* data, const Source& source, const Packed& to, int64_t t) {
  const bool few = to.rows <= kPairDecodeRows;
  const int64_t row = few ? 0 : tile_begin(to.rows, t), rows = (few ? to.rows : tile_begin(to.rows, t + 1)) - row;
  const int64_t groups = pair_groups(to.columns);
  c10::BFloat16* const out = static_cast<c10::BFloat16*>(to.data) + row * groups * kGroup;
  for (int64_t m = 0; m < rows; ++m) {
    const From* const from = data + source.offset(row + m);
    const auto value = [&](int64_t k) {
      return k < to.columns ? static_cast<c10::BFloat16>(static_cast<float>(from[k])) : c10::BFloat16(0.0f);
    };
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t part = 0; part < kPairParts; ++part) {
        for (int64_t j = 0; j < W; ++j) {
          const int64_t vec = g * kPairParts + part, at = few ? (vec * rows + m) * W + j : (vec * W + j) * rows + m;
          const int64_t k = g * kGroup + first_of_pair(part, j);
          out[2 * at] = value(k);
          out[2 * at + 1] = value(k + 4);
        }
      }
    }
  }
}

// The absmax of a row's blocks from `begin`, and a zero after an odd last one.
inline void decode_row(const Matrix& w, int64_t row, int64_t begin, int64_t groups, float* out) {
  const int64_t row_blocks = w.columns / kBlock, blocks = std::min(2 * groups, row_blocks - begin);
  decode_absmax(w, row * row_blocks + begin, blocks, out);
  if (blocks < 2 * groups) out[blocks] = 0;
}

inline Words load_group(const Matrix& w, int64_t row, int64_t group) {
  const int64_t begin = group * kGroup;
  return load_words(static_cast<const uint8_t*>(w.values) + (row * w.columns + begin) / 2, begin + kGroup <= w.columns ? 2 : 1);
}

// partial[m][r] += x times rows row..row+R-1 of w, over `groups` groups from `begin`.
template <int M, int R, int P>
void decode_pairs_chunk(const uint8_t* x, const Matrix& w, int64_t row, int64_t begin, int64_t groups, Vec* partial) {
  float absmax[R][2 * kChunkGroups];
  int64_t rows[R];
  for (int r = 0; r < R; ++r) {
    rows[r] = std::min(row + r, w.rows - 1);
    decode_row(w, rows[r], 2 * begin, groups, absmax[r]);
  }
  const uint8_t* const ahead = static_cast<const uint8_t*>(w.values) + (row * w.columns + begin * kGroup) / 2 + R * kAhead;
  Vec acc[R][M][P];
  const auto each = [](auto f) MOE_INLINE {
    repeat<R>([f](auto r)
                  MOE_INLINE { repeat<M>([f, r](auto m) MOE_INLINE { repeat<P>([f, r, m](auto p) MOE_INLINE { f(r, m, p); }); }); });
  };
  each([&](auto r, auto m, auto p) MOE_INLINE { acc[r][m][p] = p == 0 ? partial[m * W + r] : zero(); });
  for (int64_t g = 0; g < groups; ++g) {
    PairTable table[R];
    Words nibbles[R];
    repeat<R>([&](auto r) MOE_INLINE {
      table[r] = make_pair_table(absmax[r] + 2 * g);
      nibbles[r] = load_group(w, rows[r], begin + g);
    });
    repeat<R>([&](auto r) MOE_INLINE { prefetch(ahead + (g * R + r) * 64); });
    repeat<kPairParts>([&](auto part) MOE_INLINE {
      Words values[R];
      repeat<R>([&](auto r) MOE_INLINE { values[r] = expand_pairs(nibbles[r], table[r], part); });
      repeat<M>([&](auto m) MOE_INLINE {
        const Words a = read_words(x + ((g * kPairParts + part) * M + m) * W * 4);
        repeat<R>([&](auto r) MOE_INLINE { acc[r][m][part % P] = dot_pairs(acc[r][m][part % P], values[r], a); });
      });
    });
  }
  each([&](auto r, auto m, auto p) MOE_INLINE { partial[m * W + r] = p == 0 ? acc[r][m][p] : add(partial[m * W + r], acc[r][m][p]); });
}

template <int M>
void decode_pairs_group(const uint8_t* x, const Matrix& w, int64_t first_row, const Results<S>& to) {
  constexpr int R = M < 4 ? 1 : 2, P = M < 4 ? 2 : 1;
  constexpr int64_t kChunk = std::max<int64_t>(kChunkGroups / M, 1);
  Vec partial[M * W];
  for (auto& vec : partial) vec = zero();
  const int64_t groups = pair_groups(w.columns), rows = std::min(W, w.rows - first_row);
  for (int64_t begin = 0; begin < groups; begin += kChunk) {
    const uint8_t* const from = x + begin * kGroupPairs * M * 4;
    for (int64_t r = 0; r < rows; r += R) {
      decode_pairs_chunk<M, R, P>(from, w, first_row + r, begin, std::min(kChunk, groups - begin), partial + r);
    }
  }
  add_lanes<M>(partial, to);
}

using DecodePairs = void (*)(const uint8_t*, const Matrix&, int64_t, const Results<S>&);

template <int... M>
constexpr std::array<DecodePairs, sizeof...(M)> decode_pairs_of(std::integer_sequence<int, M...>) {
  return {decode_pairs_group<M + 1>...};
}

constexpr auto kDecodePairs = decode_pairs_of(std::make_integer_sequence<int, kPairDecodeRows>());

// panel[group][part][pair] is a vector of one pair a row, `stride` bytes from one to the next.
inline void fill_pairs(const Matrix& w, int64_t first_row, int64_t begin, int64_t groups, uint8_t* panel, int64_t stride) {
  const int64_t rows = std::min(W, w.rows - first_row);
  float absmax[W][2 * kChunkGroups];
  for (int64_t r = 0; r < rows; ++r) decode_row(w, first_row + r, 2 * begin, groups, absmax[r]);
  prefetch_next(w, first_row, W, begin * kGroup, groups * kGroup);
  Words values[kPairParts][W];
  for (int64_t r = rows; r < W; ++r) {
    for (auto& part : values) part[r] = set1_word(0);
  }
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t r = 0; r < rows; ++r) {
      const PairTable table = make_pair_table(absmax[r] + 2 * g);
      const Words nibbles = load_group(w, first_row + r, begin + g);
      for (int part = 0; part < kPairParts; ++part) values[part][r] = expand_pairs(nibbles, table, part);
    }
    for (int part = 0; part < kPairParts; ++part) {
      Words v[W];
      for (int64_t i = 0; i < W; ++i) v[i] = values[part][i];
      transpose_words(v);
      for (int64_t j = 0; j < W; ++j) store_words(panel + ((g * kPairParts + part) * W + j) * stride, v[j]);
    }
  }
}

// to[M, V * W] (+)= a [pairs, M] times panel [pairs, V * W].
template <int M, int V>
void tile_pairs(const int32_t* a, const uint8_t* panel, int64_t pairs, const Results<S>& to) {
  Vec acc[M][V];
  const auto each = [](auto f) MOE_INLINE { repeat<M>([f](auto m) MOE_INLINE { repeat<V>([f, m](auto v) MOE_INLINE { f(m, v); }); }); };
  each([&](auto m, auto v) MOE_INLINE { acc[m][v] = to.add ? load(to.data + m * to.stride + v * W) : zero(); });
  for (int64_t p = 0; p < pairs; ++p) {
    Words b[V];
    repeat<V>([&](auto v) MOE_INLINE { b[v] = read_words(panel + (p * V + v) * W * 4); });
    repeat<M>([&](auto m) MOE_INLINE {
      const Words x = set1_word(a[p * M + m]);
      repeat<V>([&](auto v) MOE_INLINE { acc[m][v] = dot_pairs(acc[m][v], b[v], x); });
    });
  }
  each([&](auto m, auto v) MOE_INLINE { store(to.data + m * to.stride + v * W, acc[m][v]); });
}

using TilePairs = void (*)(const int32_t*, const uint8_t*, int64_t, const Results<S>&);

template <int V, int... M>
constexpr std::array<TilePairs, sizeof...(M)> pair_tiles_of(std::integer_sequence<int, M...>) {
  return {tile_pairs<M + 1, V>...};
}

template <int V>
constexpr auto kPairTiles = pair_tiles_of<V>(std::make_integer_sequence<int, kTileRows>());

template <int V>
void pair_panels(const Packed& x, const Matrix* const* w, const int64_t* first_row, const Results<S>& to) {
  constexpr int64_t kDepthGroups = 4;  // 512 columns: 32 KB of two vectors
  alignas(64) uint8_t panel[kDepthGroups * kGroupPairs * V * W * 4];
  const int64_t all = pair_groups(x.columns);
  for (int64_t begin = 0; begin < all; begin += kDepthGroups) {
    const int64_t groups = std::min(kDepthGroups, all - begin);
    for (int v = 0; v < V; ++v) fill_pairs(*w[v], first_row[v], begin, groups, panel + v * W * 4, V * W * 4);
    for (int64_t t = 0; t < num_tiles(x.rows); ++t) {
      const int64_t row = tile_begin(x.rows, t), rows = tile_begin(x.rows, t + 1) - row;
      const int32_t* const a = static_cast<const int32_t*>(x.data) + (row * all + begin * rows) * kGroupPairs;
      const Results<S> results{to.data + row * to.stride, to.stride, to.add || begin > 0};
      kPairTiles<V>[static_cast<size_t>(rows - 1)](a, panel, groups* kGroupPairs, results);
    }
  }
}

inline void pair_product(const Packed& x, const Matrix* first, int64_t first_row, const Matrix* second, int64_t second_row,
                         const Results<S>& to) {
  if (x.rows <= kPairDecodeRows) {
    const auto decode = kDecodePairs[static_cast<size_t>(x.rows - 1)];
    const auto* const data = static_cast<const uint8_t*>(x.data);
    if (first != nullptr) decode(data, *first, first_row, to);
    if (second != nullptr) decode(data, *second, second_row, {to.data + W, to.stride, to.add});
    return;
  }
  const Matrix* const w[2] = {first != nullptr ? first : second, second};
  const int64_t rows[2] = {first != nullptr ? first_row : second_row, second_row};
  const Results<S> at{to.data + (first != nullptr ? 0 : W), to.stride, to.add};
  (first != nullptr && second != nullptr ? pair_panels<2> : pair_panels<1>)(x, w, rows, at);
}
