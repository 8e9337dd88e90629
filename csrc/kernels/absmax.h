// The absmax of blocks of NF4, decoded for a window at a time: for a few blocks a row, the loop around them would cost more than they do.

constexpr int64_t kWindow = 64;  // blocks of a row

// out[i] = the absmax of block first + i.
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
