// One or two rows of int8: memory is the limit, so weights are read from end to end and used at once. Lanes run over the columns.
//
// Budget of AVX-512 for 128 columns: 1 load, 5 operations to expand, then for each row of activations 2 vpdpbusd and 2 to scale.

// partial[m][r] += activations times row `row` of w, over `blocks` blocks from `begin`, a multiple of a vector's.
template <int M>
void int8_decode_chunk(const int32_t* const* words, const float* const* scales, const Matrix& w, int64_t row, int64_t begin, int64_t blocks,
                       Vec* partial) {
  alignas(64) float factors[M][kWindow + W] = {};  // absmax times the activations' scale
  const int64_t first = row * (w.columns / kBlock) + begin;
  decode_absmax(w, first, blocks, factors[0]);
  for (int64_t b = 0; b < blocks; b += W) {
    const Vec absmax = mul(load(factors[0] + b), set1(1 / kLevelScale));
    for (int m = 0; m < M; ++m) store(factors[m] + b, mul(absmax, load(scales[m] + begin + b)));
  }
  const uint8_t* const bytes = static_cast<const uint8_t*>(w.values) + first * (kBlock / 2);
  Vec total[M];
  repeat<M>([&](auto m) MOE_INLINE { total[m] = partial[m * W]; });
  for (int64_t b = 0; b < blocks; b += kWordBlocks) {
    const Words nibbles = load_words(bytes + b * (kBlock / 2), std::min<int64_t>(kWordBlocks, blocks - b));
    prefetch(bytes + b * (kBlock / 2) + kAhead);
    const Words even = even_codes(nibbles), odd = odd_codes(nibbles);
    repeat<M>([&](auto m) MOE_INLINE {
      const int32_t* const x = words[m] + (begin + b) / kWordBlocks * 3 * W;
      const Words acc = dot(dot(load_int32(x + 2 * W), even, load_int32(x)), odd, load_int32(x + W));
      total[m] = fma(to_float(acc), spread(factors[m] + b), total[m]);
    });
  }
  repeat<M>([&](auto m) MOE_INLINE { partial[m * W] = total[m]; });
}

// A group of W rows of w, all columns, for M rows of activations.
template <int M>
void int8_decode_group(const Packed& x, const Matrix& w, int64_t first_row, const Results<S>& to) {
  const int32_t* words[M];
  const float* scales[M];
  for (int m = 0; m < M; ++m) {
    words[m] = static_cast<const int32_t*>(x.data) + m * lanes_stride(x.columns);
    scales[m] = reinterpret_cast<const float*>(words[m] + lanes_words(x.columns));
  }
  Vec partial[M * W];
  for (auto& vec : partial) vec = zero();
  const int64_t blocks = w.columns / kBlock, rows = std::min(W, w.rows - first_row);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t begin = 0; begin < blocks; begin += kWindow) {
      int8_decode_chunk<M>(words, scales, w, first_row + r, begin, std::min(kWindow, blocks - begin), partial + r);
    }
  }
  add_lanes<M>(partial, to);
}
