// Activations, gathered and laid out for a product, converted to S.

template <typename From>
void pack_tile(const From* data, const Source& source, int64_t row, int64_t rows, int64_t columns, S* out) {
  for (int64_t m = 0; m < rows; ++m) {
    const From* from = data + source.offset(row + m);
    for (int64_t k = 0; k < columns; ++k) out[k * rows + m] = static_cast<S>(from[k]);
  }
}

template <typename From>
void pack_blocks(const From* data, const Source& source, int64_t rows, int64_t columns, S* out) {
  for (int64_t m = 0; m < rows; ++m) {
    const From* from = data + source.offset(m);
    for (int64_t b = 0; b < columns / kBlock; ++b) {
      for (int64_t part = 0; part < kParts; ++part) {
        S* const to = out + ((b * kParts + part) * rows + m) * W;
        for (int64_t i = 0; i < W; ++i) to[i] = static_cast<S>(from[b * kBlock + column_of(part, i)]);
      }
    }
  }
}

template <typename From>
void pack_as(const From* data, const Source& source, const Packed& to, int64_t t) {
  if (to.layout == Layout::blocks) return pack_blocks(data, source, to.rows, to.columns, static_cast<S*>(to.data));
  if (to.layout == Layout::tiles) {
    const int64_t row = tile_begin(to.rows, t), rows = tile_begin(to.rows, t + 1) - row;
    return pack_tile(data, source, row, rows, to.columns, static_cast<S*>(to.data) + row * to.columns);
  }
#ifdef MOE_BF16
  if (to.layout == Layout::pairs) return pack_pairs(data, source, to, t);
  if (to.layout == Layout::row_pairs) return pack_row_pairs(data, source, to, t);
#endif
  pack_int8(data, source, to, t);
}

inline void pack(const Source& source, const Packed& to, int64_t t) {
  switch (source.dtype) {
    case Dtype::f32:
      return pack_as(static_cast<const float*>(source.data), source, to, t);
    case Dtype::bf16:
      return pack_as(static_cast<const c10::BFloat16*>(source.data), source, to, t);
    case Dtype::f16:
      return pack_as(static_cast<const c10::Half*>(source.data), source, to, t);
    case Dtype::f64:
      return pack_as(static_cast<const double*>(source.data), source, to, t);
  }
}

inline int64_t packed_tiles(int64_t rows, Layout layout) {
#ifdef MOE_BF16
  if (layout == Layout::pairs && rows <= kPairDecodeRows) return 1;
  if (layout == Layout::pairs || layout == Layout::row_pairs) return num_tiles(rows);
#endif
  if (layout == Layout::int8) return num_int8_tiles(rows);
  return layout == Layout::blocks ? 1 : num_tiles(rows);
}

inline int64_t packed_bytes(int64_t rows, int64_t columns, Layout layout) {
  const int64_t values = rows * columns * static_cast<int64_t>(sizeof(S));
#ifdef MOE_BF16
  if (layout == Layout::pairs) return pair_bytes(rows, columns);
  if (layout == Layout::row_pairs) return rows * ((columns + 1) / 2) * 4;
#endif
  return layout == Layout::int8 ? int8_bytes(rows, columns) : values;
}
