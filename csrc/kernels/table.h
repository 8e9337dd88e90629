// The table of functions that a kernels_*.cpp hands out.

inline void product(const Packed& x, const Matrix* first, int64_t first_row, const Matrix* second, int64_t second_row,
                    const Results<S>& to) {
  if (x.layout == Layout::tiles) return panel_product(x, first, first_row, second, second_row, to);
#ifdef MOE_BF16
  if (x.layout == Layout::pairs) return pair_product(x, first, first_row, second, second_row, to);
#endif
  if (x.layout != Layout::blocks) return int8_product(x, first, first_row, second, second_row, to);
  if (first != nullptr) decode_product(x, *first, first_row, to);
  if (second != nullptr) decode_product(x, *second, second_row, {to.data + W, to.stride, to.add});
}

#ifdef MOE_BF16
constexpr bool kHasPairs = true;
#else
constexpr bool kHasPairs = false;
#endif

// x is in tiles or, for NF4 and activations in bf16, in row_pairs.
inline void product_transposed(const Packed& x, const Matrix& w, int64_t begin, const Results<S>& to) {
#ifdef MOE_BF16
  if (x.layout == Layout::row_pairs) return pair_product_transposed(x, w, begin, to);
#endif
  panel_product_transposed(x, w, begin, to);
}

constexpr Kernels<S> table() {
  return {W, kDecodeRows, kHasPairs, packed_bytes, packed_tiles, dequantize, pack, product, product_transposed, swiglu, swiglu_backward};
}
