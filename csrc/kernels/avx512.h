// AVX-512 (F, BW, DQ, VL), with VNNI where MOE_VNNI says so. 16 lanes of float.

using S = float;
using Vec = __m512;
constexpr int64_t W = 16;
constexpr int kTileRows = 12;  // 12 x 2 accumulators, two weights and one activation: 27 of 32 registers
constexpr int kInt8Rows = 8;   // as many sums in int32 and in float, 16 each: measured best of 6 to 12
constexpr int kInt8DecodeRows = 2;
constexpr int kDecodeRows = 16;  // accumulators of one row of weights, with 16 registers left to expand it

inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec set1(float x) { return _mm512_set1_ps(x); }
inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec load_first(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p); }
inline void store_first(float* p, Vec a, int64_t n) { _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), a); }
inline float sum(Vec a) { return _mm512_reduce_add_ps(a); }

// e^x to 1 ulp: 2^n e^r with |r| <= ln 2 / 2 and a polynomial of degree 6 (Cephes). scalef takes n beyond the exponents of float.
inline Vec exp(Vec x) {
  const Vec n = _mm512_roundscale_ps(_mm512_mul_ps(x, set1(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  Vec r = _mm512_fnmadd_ps(n, set1(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, set1(-2.12194440e-4f), r);
  Vec p = set1(1.9875691500e-4f);
  for (const float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) p = fma(p, r, set1(c));
  p = add(fma(mul(r, r), p, r), set1(1.0f));
  const Vec y = _mm512_scalef_ps(p, n);
  // Where x is infinite, r is NaN; scalef's own limits begin far outside of what float can hold.
  return _mm512_mask_mov_ps(_mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(x, set1(-110.0f), _CMP_LT_OQ), zero()),
                            _mm512_cmp_ps_mask(x, set1(89.0f), _CMP_GT_OQ), set1(INFINITY));
}

// The 16 x 16 values of 16 vectors, transposed.
inline void transpose(Vec v[W]) {
  Vec t[W];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    v[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
    v[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
    v[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    v[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_f32x4(v[i], v[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(v[i], v[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_f32x4(v[i + 8], v[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(v[i + 8], v[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
    v[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
    v[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
    v[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

// The 16 values that the nibbles of a block stand for, rounded to the dtype of the weight.
using Table = __m512;

inline Table make_table(float absmax, Dtype dtype) {
  const __m512 exact = _mm512_mul_ps(_mm512_loadu_ps(kLevels), _mm512_set1_ps(absmax));
  if (dtype == Dtype::f16) return _mm512_cvtph_ps(_mm512_cvtps_ph(exact, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  if (dtype != Dtype::bf16) return exact;
  const __m512i bits = _mm512_castps_si512(exact);  // to nearest, ties to even
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  return _mm512_castsi512_ps(_mm512_and_si512(rounded, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

// A block in registers: 16 bits a lane, so 4 values of consecutive columns. vpermps reads the low 4 bits of an index and no more, so a
// vector of values is one shift and one lookup. Per block: 1 widening load, 3 shifts, 4 lookups.
using Nibbles = __m512i;

inline Nibbles load_nibbles(const uint8_t* bytes) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)));
}

inline Vec expand(Nibbles nibbles, Table table, int part) {
  constexpr int kShift[4] = {4, 0, 12, 8};  // the high nibble of a byte is the even column
  return _mm512_permutexvar_ps(_mm512_srli_epi32(nibbles, kShift[part]), table);
}

constexpr int64_t column_of(int64_t part, int64_t lane) { return 4 * lane + part; }

// 16 values of consecutive columns in their order: a byte to 64 bits, its nibbles to 32 each.
inline Vec expand_in_order(const uint8_t* bytes, Table table) {
  const __m512i wide = _mm512_cvtepu8_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)));
  return _mm512_permutexvar_ps(_mm512_or_si512(_mm512_srli_epi64(wide, 4), _mm512_slli_epi64(wide, 32)), table);
}

// Of values that these types hold as they are.
inline void store(c10::BFloat16* p, Vec a) {
  const __m512i high = _mm512_srli_epi32(_mm512_castps_si512(a), 16);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(high));
}
inline void store(c10::Half* p, Vec a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a, _MM_FROUND_NO_EXC)); }
inline void store(double* p, Vec a) {
  _mm512_storeu_pd(p, _mm512_cvtps_pd(_mm512_castps512_ps256(a)));
  _mm512_storeu_pd(p + 8, _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1)));
}

// A block of values of T, which holds those of the table as they are.
template <typename T>
void write_block(const uint8_t* bytes, Table table, T* out) {
  for (int64_t i = 0; i < kBlock; i += W) store(out + i, expand_in_order(bytes + i / 2, table));
}

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }  // into L2

// Vectors of 16 words of 32 bits, each 4 bytes or 8 nibbles of a row.
using Words = __m512i;
constexpr int64_t kWordBlocks = 2;  // blocks of NF4 in a vector
constexpr int kCodeZero = 128;      // the code that stands for 0

inline Words load_words(const uint8_t* p, int64_t blocks) { return _mm512_maskz_loadu_epi32(blocks == 2 ? 0xffff : 0x00ff, p); }
inline Words read_words(const uint8_t* p) { return _mm512_load_si512(p); }
inline void store_words(uint8_t* p, Words a) { _mm512_store_si512(p, a); }
inline Words set1_word(int32_t x) { return _mm512_set1_epi32(x); }
inline Vec to_float(Words a) { return _mm512_cvtepi32_ps(a); }

inline Words load_int32(const int32_t* p) { return _mm512_loadu_si512(p); }

// The factor of each block of a vector, in that block's lanes.
inline Vec spread(const float* factors) { return _mm512_mask_mov_ps(_mm512_set1_ps(factors[0]), 0xff00, _mm512_set1_ps(factors[1])); }

inline void transpose_words(Words v[W]) {
  Vec t[W];
  for (int i = 0; i < W; ++i) t[i] = _mm512_castsi512_ps(v[i]);
  transpose(t);
  for (int i = 0; i < W; ++i) v[i] = _mm512_castps_si512(t[i]);
}

inline Words codes_of(Words nibbles) {
  const Words table = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(kLevelCodes)));
  return _mm512_shuffle_epi8(table, _mm512_and_si512(nibbles, _mm512_set1_epi8(15)));
}
inline Words even_codes(Words nibbles) { return codes_of(_mm512_srli_epi32(nibbles, 4)); }  // the high nibble is the even column
inline Words odd_codes(Words nibbles) { return codes_of(nibbles); }

// acc + the four products of each word's unsigned bytes of `u` and signed bytes of `s`.
inline Words dot(Words acc, Words u, Words s) {
#if defined(MOE_VNNI) && defined(__GNUC__)
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(u), "v"(s));  // of the intrinsic GCC 12 makes a copy and a spill each: half the speed
  return acc;
#elif defined(MOE_VNNI)
  return _mm512_dpbusd_epi32(acc, u, s);
#else
  // By halves of 16 bits: vpmaddubsw would saturate, as 2 * 255 * 127 is beyond 32767.
  const Words even = _mm512_madd_epi16(_mm512_and_si512(u, _mm512_set1_epi16(255)), _mm512_srai_epi16(_mm512_slli_epi16(s, 8), 8));
  const Words odd = _mm512_madd_epi16(_mm512_srli_epi16(u, 8), _mm512_srai_epi16(s, 8));
  return _mm512_add_epi32(acc, _mm512_add_epi32(even, odd));
#endif
}
