// Transposed products by pairs of bf16.

// For transposed products the reduction runs over the rows of the weight, two of which make a pair.
template <typename From>
void pack_row_pairs(const From* data, const Source& source, const Packed& to, int64_t t) {
  const int64_t row = tile_begin(to.rows, t), rows = tile_begin(to.rows, t + 1) - row, pairs = (to.columns + 1) / 2;
  c10::BFloat16* const out = static_cast<c10::BFloat16*>(to.data) + row * pairs * 2;
  for (int64_t m = 0; m < rows; ++m) {
    const From* const from = data + source.offset(row + m);
    for (int64_t k = 0; k < 2 * pairs; ++k) {
      const float value = k < to.columns ? static_cast<float>(from[k]) : 0.0f;
      out[(k / 2 * rows + m) * 2 + k % 2] = static_cast<c10::BFloat16>(value);
    }
  }
}

// panel[part / 2][pair of rows][part % 2] has the pairs of rows begin, begin + 1, .. in one block of columns, in order of expansion.
inline void fill_row_pairs(const Matrix& w, int64_t begin, int64_t rows, int64_t block, uint8_t* panel) {
  alignas(64) static constexpr int16_t kInterleave[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                          8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const Words interleave = _mm512_load_si512(kInterleave);
  const int64_t row_blocks = w.columns / kBlock, pairs = (rows + 1) / 2;
  for (int64_t p = 0; p < pairs; ++p) {
    float absmax[2] = {0, 0};
    __m256i bytes[2] = {};
    for (int64_t i = 0; i < std::min<int64_t>(2, rows - 2 * p); ++i) {
      const int64_t at = (begin + 2 * p + i) * row_blocks + block;
      decode_absmax(w, at, 1, absmax + i);
      bytes[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const uint8_t*>(w.values) + at * (kBlock / 2)));
    }
    const PairTable table = make_pair_table(absmax);
    const Words nibbles = _mm512_inserti64x4(_mm512_castsi256_si512(bytes[0]), bytes[1], 1);
    for (int part = 0; part < kPairParts; ++part) {
      const Words values = _mm512_permutexvar_epi16(interleave, expand_pairs(nibbles, table, part));
      store_words(panel + ((part / 2 * pairs + p) * 2 + part % 2) * W * 4, values);
    }
  }
}

inline void pair_product_transposed(const Packed& x, const Matrix& w, int64_t begin, const Results<S>& to) {
  constexpr int64_t kRows = 256;
  alignas(64) uint8_t panel[kRows / 2 * kMaxColumns * 4];
  alignas(64) S sums[kMaxRows * kMaxColumns];
  const int64_t all = (x.columns + 1) / 2;
  for (int64_t n = 0; n < w.rows; n += kRows) {
    const int64_t rows = std::min(kRows, w.rows - n), pairs = (rows + 1) / 2;
    fill_row_pairs(w, n, rows, begin / kBlock, panel);
    for (int64_t t = 0; t < num_tiles(x.rows); ++t) {
      const int64_t row = tile_begin(x.rows, t), count = tile_begin(x.rows, t + 1) - row;
      const int32_t* const a = static_cast<const int32_t*>(x.data) + row * all + n / 2 * count;
      for (int64_t half = 0; half < 2; ++half) {
        const Results<S> results{sums + row * kMaxColumns + half * 2 * W, kMaxColumns, n > 0};
        kPairTiles<2>[static_cast<size_t>(count - 1)](a, panel + half* pairs* 2 * W* 4, pairs, results);
      }
    }
  }
  put_in_order(sums, x.rows, std::min(kMaxColumns, w.columns - begin), true, to);
}
