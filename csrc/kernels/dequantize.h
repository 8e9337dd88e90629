// NF4 written out as dense values of its dtype.

// Blocks begin..end-1 of w, of which the last may be cut off by the end of its one row.
template <typename T>
void dequantize_as(const Matrix& w, int64_t begin, int64_t end, T* out) {
  for (int64_t first = begin; first < end; first += kWindow) {
    const int64_t blocks = std::min(kWindow, end - first);
    float absmax[kWindow];
    decode_absmax(w, first, blocks, absmax);
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t column = (first + b) * kBlock, count = std::min(kBlock, w.columns - column);
      const uint8_t* const bytes = static_cast<const uint8_t*>(w.values) + column / 2;
      const Table table = make_table(absmax[b], w.dtype);
      if (count == kBlock) {
        write_block(bytes, table, out + column);
      } else {
        uint8_t cut[kBlock / 2] = {};
        T values[kBlock];
        std::copy_n(bytes, (count + 1) / 2, cut);
        write_block(cut, table, values);
        std::copy_n(values, count, out + column);
      }
    }
  }
}

inline void dequantize(const Matrix& w, int64_t begin, int64_t end, void* out) {
  switch (w.dtype) {
    case Dtype::f32:
      return dequantize_as(w, begin, end, static_cast<float*>(out));
    case Dtype::bf16:
      return dequantize_as(w, begin, end, static_cast<c10::BFloat16*>(out));
    case Dtype::f16:
      return dequantize_as(w, begin, end, static_cast<c10::Half*>(out));
    case Dtype::f64:
      return dequantize_as(w, begin, end, static_cast<double*>(out));
  }
}
