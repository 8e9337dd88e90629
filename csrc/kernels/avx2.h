// AVX2, with FMA and F16C. 8 lanes of float.

using S = float;
using Vec = __m256;
constexpr int64_t W = 8;
constexpr int kTileRows = 6;  // 6 x 2 accumulators, two weights and one activation: 15 of 16 registers
constexpr int kInt8Rows = 4;  // 8 sums, two codes and their magnitudes, one activation; 3 is slower, 6 is no faster
constexpr int kInt8DecodeRows = 2;
constexpr int kDecodeRows = 8;  // with more, two rows of weights at a time would spill from 6 rows of activations on

inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec set1(float x) { return _mm256_set1_ps(x); }
inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Vec a) { _mm256_storeu_ps(p, a); }
inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }

// All bits of the first n lanes.
inline __m256i first_lanes(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Vec load_first(const float* p, int64_t n) { return _mm256_maskload_ps(p, first_lanes(n)); }
inline void store_first(float* p, Vec a, int64_t n) { _mm256_maskstore_ps(p, first_lanes(n), a); }

inline float sum(Vec a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}

// 2^n as a float, for whole n in -126..127.
inline Vec power_of_two(__m256i n) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23)); }

// e^x to 1 ulp: 2^n e^r with |r| <= ln 2 / 2 and a polynomial of degree 6 (Cephes). 2^n is two factors, so that beyond the exponents of
// float it becomes infinity, a denormal or zero; the limits of x, given as first operands, let a NaN through.
inline Vec exp(Vec x) {
  x = _mm256_max_ps(set1(-110.0f), _mm256_min_ps(set1(89.0f), x));
  const Vec n = _mm256_round_ps(mul(x, set1(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  Vec r = _mm256_fnmadd_ps(n, set1(0.693359375f), x);
  r = _mm256_fnmadd_ps(n, set1(-2.12194440e-4f), r);
  Vec p = set1(1.9875691500e-4f);
  for (const float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) p = fma(p, r, set1(c));
  p = add(fma(mul(r, r), p, r), set1(1.0f));
  const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
  return mul(mul(p, power_of_two(half)), power_of_two(_mm256_sub_epi32(whole, half)));
}

// The 8 x 8 values of 8 vectors, transposed.
inline void transpose(Vec v[W]) {
  Vec t[W];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    v[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    v[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    v[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    v[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm256_permute2f128_ps(v[i], v[i + 4], 0x20);
    t[i + 4] = _mm256_permute2f128_ps(v[i], v[i + 4], 0x31);
  }
  for (int i = 0; i < 8; ++i) v[i] = t[i];
}

// The 16 values that the nibbles of a block stand for, rounded to the dtype of the weight: those of nibbles 0..7 and of 8..15.
struct Table {
  Vec low, high;
};

inline Vec round_to(Vec exact, Dtype dtype) {
  if (dtype == Dtype::f16) return _mm256_cvtph_ps(_mm256_cvtps_ph(exact, _MM_FROUND_TO_NEAREST_INT));
  if (dtype != Dtype::bf16) return exact;
  const __m256i bits = _mm256_castps_si256(exact);  // to nearest, ties to even
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  return _mm256_castsi256_ps(_mm256_and_si256(rounded, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}

inline Table make_table(float absmax, Dtype dtype) {
  const Vec scale = set1(absmax);
  return {round_to(mul(load(kLevels), scale), dtype), round_to(mul(load(kLevels + 8), scale), dtype)};
}

// A block in registers: 32 bits a lane, so 8 values of consecutive columns. vpermps reads the low 3 bits of an index and no more; the
// fourth, shifted to the sign, chooses between the halves. Per block: 1 load, 14 shifts, 16 lookups, 8 blends.
using Nibbles = __m256i;

inline Nibbles load_nibbles(const uint8_t* bytes) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)); }

inline Vec lookup(Table table, __m256i index, __m256i fourth) {
  return _mm256_blendv_ps(_mm256_permutevar8x32_ps(table.low, index), _mm256_permutevar8x32_ps(table.high, index),
                          _mm256_castsi256_ps(fourth));
}

inline Vec expand(Nibbles nibbles, Table table, int part) {
  const int shift = part / 2 * 8 + (part % 2 == 0 ? 4 : 0);  // the high nibble of a byte is the even column
  return lookup(table, _mm256_srli_epi32(nibbles, shift), _mm256_slli_epi32(nibbles, 28 - shift));
}

constexpr int64_t column_of(int64_t part, int64_t lane) { return 8 * lane + part; }

// 8 values of consecutive columns in their order: a byte to 64 bits, its nibbles to 32 each.
inline Vec expand_in_order(const uint8_t* bytes, Table table) {
  int32_t four;
  std::memcpy(&four, bytes, 4);
  const __m256i wide = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(four));
  const __m256i index = _mm256_or_si256(_mm256_srli_epi64(wide, 4), _mm256_slli_epi64(wide, 32));
  return lookup(table, index, _mm256_slli_epi32(index, 28));
}

// Of values that these types hold as they are.
inline void store(c10::BFloat16* p, Vec a) {
  const __m256i high = _mm256_srli_epi32(_mm256_castps_si256(a), 16);
  const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
}
inline void store(c10::Half* p, Vec a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a, _MM_FROUND_NO_EXC)); }
inline void store(double* p, Vec a) {
  _mm256_storeu_pd(p, _mm256_cvtps_pd(_mm256_castps256_ps128(a)));
  _mm256_storeu_pd(p + 4, _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1)));
}

// A block of values of T, which holds those of the table as they are.
template <typename T>
void write_block(const uint8_t* bytes, Table table, T* out) {
  for (int64_t i = 0; i < kBlock; i += W) store(out + i, expand_in_order(bytes + i / 2, table));
}

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

// Vectors of 8 words of 32 bits, each 4 bytes or 8 nibbles of a row.
using Words = __m256i;
constexpr int64_t kWordBlocks = 1;  // blocks of NF4 in a vector
constexpr int kCodeZero = 0;        // the code that stands for 0: codes are signed here, see `dot`

inline Words load_words(const uint8_t* p, int64_t) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline Words read_words(const uint8_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }
inline void store_words(uint8_t* p, Words a) { _mm256_store_si256(reinterpret_cast<__m256i*>(p), a); }
inline Words load_int32(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline Words set1_word(int32_t x) { return _mm256_set1_epi32(x); }
inline Vec to_float(Words a) { return _mm256_cvtepi32_ps(a); }

inline Vec spread(const float* factors) { return set1(factors[0]); }

inline void transpose_words(Words v[W]) {
  Vec t[W];
  for (int i = 0; i < W; ++i) t[i] = _mm256_castsi256_ps(v[i]);
  transpose(t);
  for (int i = 0; i < W; ++i) v[i] = _mm256_castps_si256(t[i]);
}

inline Words codes_of(Words nibbles) {
  const __m128i levels = _mm_xor_si128(_mm_loadu_si128(reinterpret_cast<const __m128i*>(kLevelCodes)), _mm_set1_epi8(-128));
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(levels), _mm256_and_si256(nibbles, _mm256_set1_epi8(15)));
}
inline Words even_codes(Words nibbles) { return codes_of(_mm256_srli_epi32(nibbles, 4)); }  // the high nibble is the even column
inline Words odd_codes(Words nibbles) { return codes_of(nibbles); }

// acc + the four products of each word's bytes of codes and of activations, both signed. vpmaddubsw takes unsigned ones first and adds two
// products in 16 bits: for codes of 16..240 it would saturate, for the magnitudes of signed ones, 2 * 112 * 127 at most, it is exact.
inline Words dot(Words acc, Words codes, Words x) {
  const Words pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(x, codes));
  return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
