// The absmax of blocks of NF4, decoded for a window at a time: for a few blocks a row, the loop around them would cost more than they do.

constexpr int64_t kWindow = 64;  // blocks of a row

// out[i] = the absmax of block first + i. Two roundings, as bitsandbytes has them: nothing here may become a fused multiply-add.
inline void decode_absmax(const Matrix& w, int64_t first, int64_t count, float* out) {
  const uint8_t* codes = w.absmax8 + first;
  const int64_t before = w.first_block + first;
  for (int64_t i = 0; i < count;) {
    const int64_t group = (before + i) / kNestedBlock;
    const int64_t end = std::min(count, (group + 1) * kNestedBlock - before);
    const float nested = w.nested[group];
    for (; i < end; ++i) out[i] = w.map[codes[i]] * nested + w.offset;
  }
}

// out[r][b] of rows first_row + r and blocks begin + b; zeros where there is no such row.
inline void decode_window(const Matrix& w, int64_t first_row, int64_t begin, int64_t blocks, float (*out)[kWindow]) {
  for (int64_t r = 0; r < W; ++r) {
    if (first_row + r < w.rows) {
      decode_absmax(w, (first_row + r) * (w.columns / kBlock) + begin, blocks, out[r]);
    } else {
      std::fill_n(out[r], blocks, 0.0f);
    }
  }
}

// Memory is fastest when it is read from end to end. Where one or two rows are worked on at a time, it is: this many bytes a row ahead.
// Four KB is what memory gives a thread in a fifth of a microsecond, twice its latency.
constexpr int64_t kAhead = 4096;

// A group of W rows is not read so: while some columns of it are worked on, as many bytes of the rows that come next are fetched into the
// L2 cache, in their order.
inline void prefetch_next(const Matrix& w, int64_t row, int64_t rows, int64_t begin, int64_t columns) {
  const uint8_t* const next = static_cast<const uint8_t*>(w.values) + ((row + rows) * w.columns + begin * rows) / 2;
  for (int64_t i = 0; i < columns * rows / 2; i += 64) prefetch(next + i);
}
