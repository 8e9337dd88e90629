// The activation function between the matrices of an expert, on the results of a task.

inline Vec sigmoid(Vec x) { return div(set1(1), add(set1(1), exp(sub(zero(), x)))); }

inline void swiglu(const Results<S>& gu, int64_t rows, int64_t columns, const S* weights, S* h, int64_t h_stride) {
  for (int64_t m = 0; m < rows; ++m) {
    const Vec g = load(gu.data + m * gu.stride), u = load(gu.data + m * gu.stride + W);
    const Vec silu = div(g, add(set1(1), exp(sub(zero(), g))));  // so that -infinity gives NaN, as in PyTorch
    store_first(h + m * h_stride, mul(mul(silu, u), set1(weights[m])), columns);
  }
}

inline void swiglu_backward(const Results<S>& dh, int64_t rows, int64_t columns, const S* g, const S* u, int64_t gu_stride,
                            const S* weights, S* dg, S* du, S* dweights, S* h, int64_t h_stride) {
  for (int64_t m = 0; m < rows; ++m) {
    Vec total = zero();
    for (int64_t i = 0; i < columns; i += W) {
      const int64_t count = std::min(W, columns - i), at = m * gu_stride + i;
      const Vec gate = load_first(g + at, count), up = load_first(u + at, count), weight = set1(weights[m]);
      const Vec sig = sigmoid(gate), silu = mul(gate, sig), d = load_first(dh.data + m * dh.stride + i, count);
      total = fma(d, mul(silu, up), total);
      const Vec weighted = mul(d, weight);
      // silu' = sig (1 + g (1 - sig))
      const Vec slope = mul(sig, fma(gate, sub(set1(1), sig), set1(1)));
      store_first(dg + at, mul(mul(weighted, up), slope), count);
      store_first(du + at, mul(weighted, silu), count);
      if (h != nullptr) store_first(h + m * h_stride + i, mul(mul(silu, up), weight), count);
    }
    dweights[m] += sum(total);
  }
}
