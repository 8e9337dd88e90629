// NF4 times activations quantised to 8 bits, with exact sums of products in int32.
//
// Activations: per row and block of 64, q = round(x / s) with s = max|x| / 127. Weights: a level is u = round(kLevelScale level) + 128, so
// a block adds s absmax / kLevelScale * (sum u q - 128 sum q) to the result.
// Budget for a block of W rows of weights: 16 vpdpbusd for each row of activations, then 3 operations to scale.

constexpr int kDwords = kBlock / 4;       // of a block: the even columns 8j.. and the odd columns 8j + 1.. for j = 0..7 in turn
constexpr int kBlockWords = kDwords + 2;  // with the scale and -128 times the sum

constexpr int64_t int8_row_bytes(int64_t columns) { return columns / kBlock * kBlockWords * 4; }

// As in gemm.h, with tiles of their own height; the few rows that are laid out in lanes count as one.
constexpr bool in_lanes(int64_t rows) { return rows <= kInt8DecodeRows; }
constexpr int64_t num_int8_tiles(int64_t rows) { return in_lanes(rows) ? 1 : (rows + kInt8Rows - 1) / kInt8Rows; }
constexpr int64_t int8_tile_begin(int64_t rows, int64_t t) { return t * rows / num_int8_tiles(rows); }

// Rounds to the nearest integer, ties to even, for |x| < 2^22; whatever a NaN gives is an int too.
inline int32_t nearest(float x) {
  const float shifted = x + 12582912.0f;
  int32_t bits;
  std::memcpy(&bits, &shifted, 4);
  return bits - 0x4b400000;
}

struct QuantizedBlock {
  int32_t words[kDwords];
  float scale;
};

inline QuantizedBlock quantize_block(const float* values) {
  float largest = 0;
  for (int64_t i = 0; i < kBlock; ++i) largest = std::abs(values[i]) <= largest ? largest : std::abs(values[i]);  // a NaN is the largest
  const float scale = largest / 127;
  const float inverse = scale > 0 ? 1 / scale : scale == 0 ? 0 : scale;  // a NaN stays one
  int8_t q[kBlock];
  for (int64_t i = 0; i < kBlock; ++i) {
    q[i] = static_cast<int8_t>(nearest(values[i] * inverse));
  }
  QuantizedBlock out;
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
inline void place_in_tile(const QuantizedBlock& quantized, int64_t block, int32_t* tile, int64_t rows, int64_t row) {
  int32_t* const out = tile + block * kBlockWords * rows + row;
  int32_t bias = 0;
  for (int64_t j = 0; j < kDwords; ++j) {
    out[j * rows] = quantized.words[j];
    bias += bias_of(quantized.words[j]);
  }
  std::memcpy(out + kDwords * rows, &quantized.scale, 4);
  out[(kDwords + 1) * rows] = bias;
}

// For few rows: [vector of blocks][even words, odd words, bias][lane], and the scales of all blocks.
inline void place_in_lanes(const QuantizedBlock& quantized, int64_t block, int32_t* lanes, float* scales) {
  int32_t* const out = lanes + block / kWordBlocks * 3 * W + block % kWordBlocks * (kDwords / 2);
  for (int64_t j = 0; j < kDwords / 2; ++j) {
    out[j] = quantized.words[2 * j];
    out[W + j] = quantized.words[2 * j + 1];
    out[2 * W + j] = bias_of(out[j]) + bias_of(out[W + j]);
  }
  scales[block] = quantized.scale;
}

// The memory of one row in lanes: its words, then its scales. The last vector may be half empty.
constexpr int64_t lanes_words(int64_t columns) { return (columns / kBlock + kWordBlocks - 1) / kWordBlocks * 3 * W; }
constexpr int64_t lanes_stride(int64_t columns) { return lanes_words(columns) + (columns / kBlock + W - 1) / W * W; }

constexpr int64_t int8_bytes(int64_t rows, int64_t columns) {
  return rows * (in_lanes(rows) ? 4 * lanes_stride(columns) : int8_row_bytes(columns));
}

template <typename From>
void pack_int8(const From* data, const Source& source, const Packed& to, int64_t t) {
  const int64_t row = int8_tile_begin(to.rows, t), rows = int8_tile_begin(to.rows, t + 1) - row;
  const bool lanes = in_lanes(to.rows);
  int32_t* const out = static_cast<int32_t*>(to.data) + row * int8_row_bytes(to.columns) / 4;
  // The last vector may be half empty: what is not written below must not be a NaN.
  if (lanes) std::memset(out, 0, static_cast<size_t>(int8_bytes(rows, to.columns)));
  for (int64_t m = 0; m < rows; ++m) {
    const From* from = data + source.offset(row + m);
    for (int64_t b = 0; b < to.columns / kBlock; ++b) {
      float values[kBlock];
      for (int64_t i = 0; i < kBlock; ++i) values[i] = static_cast<float>(from[b * kBlock + i]);
      const QuantizedBlock block = quantize_block(values);
      if (lanes) {
        int32_t* const own = out + m * lanes_stride(to.columns);
        place_in_lanes(block, b, own, reinterpret_cast<float*>(own + lanes_words(to.columns)));
      } else {
        place_in_tile(block, b, out, rows, m);
      }
    }
  }
}
