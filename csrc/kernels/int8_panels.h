// Many rows of int8: codes are expanded once into a panel and meet every tile of rows. Lanes run over the outputs.

constexpr int64_t kInt8Depth = 256 / kBlock;  // blocks of a panel: 8 KB with AVX-512
constexpr int64_t kNibbleTiles = 2;           // so few tiles expand nibbles themselves

// A group of W rows over `blocks` blocks: panel[block][dword] is a vector of 4 codes a row, `stride` bytes from one to the next; or, if it
// is not worth storing codes for the few tiles that read them, panel[block][pair of dwords] is one of 8 nibbles a row.
template <bool kNibbles>
void fill_codes(const Matrix& w, int64_t first_row, int64_t begin, int64_t blocks, uint8_t* panel, int64_t stride) {
  const uint8_t* const bytes = static_cast<const uint8_t*>(w.values) + begin * kBlock / 2;
  prefetch_next(w, first_row, W, begin * kBlock, blocks * kBlock);
  for (int64_t b = 0; b < blocks; b += kWordBlocks) {
    const int64_t count = std::min<int64_t>(kWordBlocks, blocks - b);
    Words v[W];
    for (int64_t r = 0; r < W; ++r) v[r] = load_words(bytes + (std::min(first_row + r, w.rows - 1) * w.columns + b * kBlock) / 2, count);
    transpose_words(v);
    for (int64_t j = 0; j < count * kDwords / 2; ++j) {
      if constexpr (kNibbles) {
        store_words(panel + (b * kDwords / 2 + j) * stride, v[j]);
      } else {
        store_words(panel + (b * kDwords + 2 * j) * stride, even_codes(v[j]));
        store_words(panel + (b * kDwords + 2 * j + 1) * stride, odd_codes(v[j]));
      }
    }
  }
}

// scales[block * stride + r] = absmax / kLevelScale of a window.
inline void fill_scales(const Matrix& w, int64_t first_row, int64_t begin, int64_t blocks, float* scales, int64_t stride) {
  alignas(64) float absmax[W][kWindow];
  decode_window(w, first_row, begin, blocks, absmax);
  for (int64_t b = 0; b < blocks; b += W) {
    Vec v[W];
    for (int64_t r = 0; r < W; ++r) v[r] = load(absmax[r] + b);
    transpose(v);
    for (int64_t i = 0; i < W; ++i) store(scales + (b + i) * stride, mul(v[i], set1(1 / kLevelScale)));
  }
}

// to[M, V * W] (+)= M rows of activations times the panel.
template <int M, int V, bool kNibbles>
void tile_int8(const int32_t* a, const uint8_t* panel, const float* scales, int64_t blocks, const Results<S>& to) {
  Vec total[M][V];
  repeat<M>([&](auto m) MOE_INLINE {
    repeat<V>([&](auto v) MOE_INLINE { total[m][v] = to.add ? load(to.data + m * to.stride + v * W) : zero(); });
  });
  for (int64_t b = 0; b < blocks; ++b, a += kBlockWords * M, scales += V * W) {
    Words acc[M][V];
    repeat<M>([&](auto m) MOE_INLINE {
      const Words bias = set1_word(a[(kDwords + 1) * M + m]);
      repeat<V>([&](auto v) MOE_INLINE { acc[m][v] = bias; });
    });
    const auto multiply = [&](const Words(&codes)[V], int j) MOE_INLINE {
      repeat<M>([&](auto m) MOE_INLINE {
        const Words x = set1_word(a[j * M + m]);
        repeat<V>([&](auto v) MOE_INLINE { acc[m][v] = dot(acc[m][v], codes[v], x); });
      });
    };
    for (int j = 0; j < kDwords; j += 2) {
      Words read[V], even[V], odd[V];
      repeat<V>([&](auto v) MOE_INLINE {
        read[v] = read_words(panel + v * W * 4);
        even[v] = kNibbles ? even_codes(read[v]) : read[v];
        odd[v] = kNibbles ? odd_codes(read[v]) : read_words(panel + (V + v) * W * 4);
      });
      panel += (kNibbles ? 1 : 2) * V * W * 4;
      multiply(even, j);
      multiply(odd, j + 1);
    }
    repeat<M>([&](auto m) MOE_INLINE {
      float scale;
      std::memcpy(&scale, a + kDwords * M + m, 4);
      repeat<V>([&](auto v) MOE_INLINE { total[m][v] = fma(to_float(acc[m][v]), mul(set1(scale), load(scales + v * W)), total[m][v]); });
    });
  }
  repeat<M>([&](auto m) MOE_INLINE { repeat<V>([&](auto v) MOE_INLINE { store(to.data + m * to.stride + v * W, total[m][v]); }); });
}

using TileInt8 = void (*)(const int32_t*, const uint8_t*, const float*, int64_t, const Results<S>&);

template <int V, bool kNibbles, int... M>
constexpr std::array<TileInt8, sizeof...(M)> int8_tiles_of(std::integer_sequence<int, M...>) {
  return {tile_int8<M + 1, V, kNibbles>...};
}

template <int V, bool kNibbles>
constexpr auto kInt8Tiles = int8_tiles_of<V, kNibbles>(std::make_integer_sequence<int, kInt8Rows>());

template <int V, bool kNibbles>
void int8_panels(const Packed& x, const Matrix* const* w, const int64_t* first_row, const Results<S>& to) {
  alignas(64) uint8_t panel[kInt8Depth * kDwords * V * W * 4];
  alignas(64) float scales[kWindow * V * W];
  const int64_t all = x.columns / kBlock, tiles = num_int8_tiles(x.rows);
  for (int64_t begin = 0; begin < all; begin += kInt8Depth) {
    const int64_t blocks = std::min(kInt8Depth, all - begin);
    for (int v = 0; v < V; ++v) {
      if (begin % kWindow == 0) fill_scales(*w[v], first_row[v], begin, std::min(kWindow, all - begin), scales + v * W, V * W);
      fill_codes<kNibbles>(*w[v], first_row[v], begin, blocks, panel + v * W * 4, V * W * 4);
    }
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t row = int8_tile_begin(x.rows, t), rows = int8_tile_begin(x.rows, t + 1) - row;
      const int32_t* a = reinterpret_cast<const int32_t*>(static_cast<const char*>(x.data) + row * int8_row_bytes(x.columns));
      const Results<S> results{to.data + row * to.stride, to.stride, to.add || begin > 0};
      const float* const panel_scales = scales + begin % kWindow * V * W;
      kInt8Tiles<V, kNibbles>[static_cast<size_t>(rows - 1)](a + begin* kBlockWords* rows, panel, panel_scales, blocks, results);
    }
  }
}

inline void int8_product(const Packed& x, const Matrix* first, int64_t first_row, const Matrix* second, int64_t second_row,
                         const Results<S>& to) {
  if (in_lanes(x.rows)) {
    const auto decode = x.rows == 1 ? int8_decode_group<1> : int8_decode_group<2>;
    if (first != nullptr) decode(x, *first, first_row, to);
    if (second != nullptr) decode(x, *second, second_row, {to.data + W, to.stride, to.add});
    return;
  }
  const Matrix* const w[2] = {first != nullptr ? first : second, second};
  const int64_t rows[2] = {first != nullptr ? first_row : second_row, second_row};
  const Results<S> at{to.data + (first != nullptr ? 0 : W), to.stride, to.add};
  const bool nibbles = num_int8_tiles(x.rows) <= kNibbleTiles;
  if (first != nullptr && second != nullptr) return (nibbles ? int8_panels<2, true> : int8_panels<2, false>)(x, w, rows, at);
  (nibbles ? int8_panels<1, true> : int8_panels<1, false>)(x, w, rows, at);
}
