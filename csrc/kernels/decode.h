// Few rows of activations times NF4: memory is the limit, so a block is expanded in registers and used at once. Lanes run over the
// columns of the weight and are added up at the end.
//
// Budget of AVX-512 for a block of 64 and M rows: 7 operations for its table (5 of them round to bf16), 8 to expand it, 4 M FMA. For one
// row that is 19 operations for 33 bytes, or 9.5 cycles on two ports: 3.5 bytes a cycle.

constexpr int kParts = kBlock / W;
constexpr int64_t kChunkBlocks = 96;  // blocks of one row of float that fill 24 KB of an L1 cache of 32 KB or more

// partial[m][r] += x times rows row..row+R-1 of w, over `blocks` blocks from `begin`. Few rows of x need P sums each, as an FMA takes 4
// cycles or more to answer; for many, R rows of weights share each load of x.
template <int M, int R, int P>
void decode_chunk(const S* x, const Matrix& w, int64_t row, int64_t begin, int64_t blocks, Vec* partial) {
  float absmax[R][kChunkBlocks];
  const uint8_t* bytes[R];
  for (int r = 0; r < R; ++r) {
    const int64_t block = std::min(row + r, w.rows - 1) * (w.columns / kBlock) + begin;
    decode_absmax(w, block, blocks, absmax[r]);
    bytes[r] = static_cast<const uint8_t*>(w.values) + block * (kBlock / 2);
  }
  const uint8_t* const ahead = static_cast<const uint8_t*>(w.values) + (row * w.columns + begin * kBlock) / 2 + R * kAhead;
  Vec acc[R][M][P];
  const auto each = [](auto f) MOE_INLINE {
    repeat<R>([f](auto r)
                  MOE_INLINE { repeat<M>([f, r](auto m) MOE_INLINE { repeat<P>([f, r, m](auto p) MOE_INLINE { f(r, m, p); }); }); });
  };
  each([&](auto r, auto m, auto p) MOE_INLINE { acc[r][m][p] = p == 0 ? partial[m * W + r] : zero(); });
  for (int64_t b = 0; b < blocks; ++b) {
    Table table[R];
    Nibbles nibbles[R];
    repeat<R>([&](auto r) MOE_INLINE {
      table[r] = make_table(absmax[r][b], w.dtype);
      nibbles[r] = load_nibbles(bytes[r] + b * (kBlock / 2));
    });
    repeat<(R + 1) / 2>([&](auto i) MOE_INLINE { prefetch(ahead + b * R * (kBlock / 2) + i * 64); });
    repeat<kParts>([&](auto part) MOE_INLINE {
      Vec values[R];
      repeat<R>([&](auto r) MOE_INLINE { values[r] = expand(nibbles[r], table[r], part); });
      repeat<M>([&](auto m) MOE_INLINE {
        const Vec a = load(x + ((b * kParts + part) * M + m) * W);
        repeat<R>([&](auto r) MOE_INLINE { acc[r][m][part % P] = fma(values[r], a, acc[r][m][part % P]); });
      });
    });
  }
  each([&](auto r, auto m, auto p) MOE_INLINE { partial[m * W + r] = p == 0 ? acc[r][m][p] : add(partial[m * W + r], acc[r][m][p]); });
}

// to[M, W] = or += for W rows of weights the sums over the lanes of partial[m][row].
template <int M>
void add_lanes(Vec* partial, const Results<S>& to) {
  for (int m = 0; m < M; ++m) {
    transpose(partial + m * W);
    Vec total = partial[m * W];
    for (int i = 1; i < W; ++i) total = add(total, partial[m * W + i]);
    S* const out = to.data + m * to.stride;
    store(out, to.add ? add(load(out), total) : total);
  }
}

// A group of W rows of w, all columns.
template <int M>
void decode_group(const S* x, const Matrix& w, int64_t first_row, const Results<S>& to) {
  constexpr int R = M < 4 || 2 * M > kDecodeRows ? 1 : 2, P = M < 4 ? 2 : 1;
  constexpr int64_t kChunk = std::max<int64_t>(kChunkBlocks / M, 1);
  Vec partial[M * W];
  for (auto& vec : partial) vec = zero();
  const int64_t blocks = w.columns / kBlock, rows = std::min(W, w.rows - first_row);
  for (int64_t begin = 0; begin < blocks; begin += kChunk) {
    const int64_t count = std::min(kChunk, blocks - begin);
    for (int64_t r = 0; r < rows; r += R) decode_chunk<M, R, P>(x + begin * kBlock * M, w, first_row + r, begin, count, partial + r);
  }
  add_lanes<M>(partial, to);
}

using DecodeGroup = void (*)(const S*, const Matrix&, int64_t, const Results<S>&);

template <int... M>
constexpr std::array<DecodeGroup, sizeof...(M)> decode_groups(std::integer_sequence<int, M...>) {
  return {decode_group<M + 1>...};
}

constexpr auto kDecodeGroups = decode_groups(std::make_integer_sequence<int, kDecodeRows>());

inline void decode_product(const Packed& x, const Matrix& w, int64_t first_row, const Results<S>& to) {
  kDecodeGroups[static_cast<size_t>(x.rows - 1)](static_cast<const S*>(x.data), w, first_row, to);
}
