// NF4 times activations quantised to 8 bits, with exact sums of products in int32.
//
// Activations: per row and block of 64, q = round(x / s) with s = max|x| / 127. Weights: a level is u = round(kLevelScale level) + 128, so
// a block adds s absmax / kLevelScale * (sum u q - 128 sum q) to the result. Layout::int8x2 keeps the rest x - s q as a second row of
// digits with the scale s / 254, which adds to the same result.
// Budget for a block of W rows of weights: 16 vpdpbusd for each row of activations, then 3 operations to scale.

constexpr int kDwords = kBlock / 4;       // of a block: the even columns 8j.. and the odd columns 8j + 1.. for j = 0..7 in turn
constexpr int kBlockWords = kDwords + 2;  // with the scale and -128 times the sum

constexpr int digits(Layout layout) { return layout == Layout::int8 ? 1 : layout == Layout::int8x2 ? 2 : 0; }
constexpr int64_t int8_row_bytes(int64_t columns) { return columns / kBlock * kBlockWords * 4; }
constexpr int64_t num_tiles(int64_t rows, Layout layout) {
  const int64_t most = digits(layout) == 2 ? kInt8Rows / 2 : kInt8Rows;
  return (rows + most - 1) / most;
}
constexpr int64_t tile_begin(int64_t rows, int64_t t, Layout layout) { return t * rows / num_tiles(rows, layout); }

// Rounds to the nearest integer, ties to even, for |x| < 2^22; whatever a NaN gives is an int too.
inline int32_t nearest(float x) {
  const float shifted = x + 12582912.0f;
  int32_t bits;
  std::memcpy(&bits, &shifted, 4);
  return bits - 0x4b400000;
}

struct Digits {
  int32_t words[kDwords];
  float scale;
};

// One digit of a block: `values` are replaced by what it leaves over.
inline Digits quantize_block(float* values, float scale) {
  const float inverse = scale > 0 ? 1 / scale : scale == 0 ? 0 : scale;  // a NaN stays one
  int8_t q[kBlock];
  for (int64_t i = 0; i < kBlock; ++i) {
    const int32_t n = nearest(values[i] * inverse);
    q[i] = static_cast<int8_t>(n);
    values[i] -= static_cast<float>(n) * scale;
  }
  Digits out;
  for (int64_t j = 0; j < kDwords; ++j) {
    int8_t word[4];
    for (int64_t i = 0; i < 4; ++i) word[i] = q[j / 2 * 8 + 2 * i + j % 2];
    std::memcpy(out.words + j, word, 4);
  }
  out.scale = scale;
  return out;
}

// Minus what the zero point in the codes of the weights adds.
inline int32_t bias_of(int32_t word) {
  int8_t q[4];
  std::memcpy(q, &word, 4);
  return -kCodeZero * (q[0] + q[1] + q[2] + q[3]);
}

// For panels: [block][words, scale, bias][row of the tile].
inline void place_in_tile(const Digits& digits, int64_t block, int32_t* tile, int64_t rows, int64_t row) {
  int32_t* const out = tile + block * kBlockWords * rows + row;
  int32_t bias = 0;
  for (int64_t j = 0; j < kDwords; ++j) {
    out[j * rows] = digits.words[j];
    bias += bias_of(digits.words[j]);
  }
  std::memcpy(out + kDwords * rows, &digits.scale, 4);
  out[(kDwords + 1) * rows] = bias;
}

// For few rows: [vector of blocks][even words, odd words, bias][lane], and the scales of all blocks.
inline void place_in_lanes(const Digits& digits, int64_t block, int32_t* lanes, float* scales) {
  int32_t* const out = lanes + block / kWordBlocks * 3 * W + block % kWordBlocks * (kDwords / 2);
  for (int64_t j = 0; j < kDwords / 2; ++j) {
    out[j] = digits.words[2 * j];
    out[W + j] = digits.words[2 * j + 1];
    out[2 * W + j] = bias_of(out[j]) + bias_of(out[W + j]);
  }
  scales[block] = digits.scale;
}

// The memory of one row of digits in lanes: its words, then its scales. The last vector may be half empty.
constexpr int64_t lanes_words(int64_t columns) { return (columns / kBlock + kWordBlocks - 1) / kWordBlocks * 3 * W; }
constexpr int64_t lanes_stride(int64_t columns) { return lanes_words(columns) + (columns / kBlock + W - 1) / W * W; }

constexpr bool in_lanes(int64_t rows, Layout layout) { return rows * digits(layout) <= kInt8DecodeRows; }

template <typename From>
void pack_int8(const From* data, const Source& source, const Packed& to, int64_t t) {
  const int64_t row = tile_begin(to.rows, t, to.layout), rows = tile_begin(to.rows, t + 1, to.layout) - row, d = digits(to.layout);
  const bool lanes = in_lanes(to.rows, to.layout);
  char* const out = static_cast<char*>(to.data) + (lanes ? 0 : row * d * int8_row_bytes(to.columns));
  if (lanes) std::memset(out, 0, static_cast<size_t>(rows * d * lanes_stride(to.columns) * 4));  // also where a vector has no block
  for (int64_t m = 0; m < rows; ++m) {
    const From* from = data + source.offset(row + m);
    // The last vector may be half empty: what is not written must not be a NaN.
    if (lanes) std::memset(out + 4 * m * d * lanes_stride(to.columns), 0, static_cast<size_t>(4 * d * lanes_stride(to.columns)));
    for (int64_t b = 0; b < to.columns / kBlock; ++b) {
      float values[kBlock], largest = 0;
      for (int64_t i = 0; i < kBlock; ++i) values[i] = static_cast<float>(from[(b * kBlock + i) * source.column_stride]);
      for (const float v : values) largest = std::abs(v) <= largest ? largest : std::abs(v);  // a NaN is the largest
      float scale = largest / 127;
      for (int64_t i = m * d; i < (m + 1) * d; ++i, scale /= 254) {
        const Digits block = quantize_block(values, scale);
        int32_t* const words = reinterpret_cast<int32_t*>(out);
        if (lanes) {
          int32_t* const own = words + i * lanes_stride(to.columns);
          place_in_lanes(block, b, own, reinterpret_cast<float*>(own + lanes_words(to.columns)));
        } else {
          place_in_tile(block, b, words, rows * d, i);
        }
      }
    }
  }
}
