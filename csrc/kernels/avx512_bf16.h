// AVX512-BF16: products of activations in bf16 and NF4 whose values are rounded to bf16, added up in fp32, at twice the speed of FMA. On
// CPUs that have it in hardware; elsewhere bf16 is never computed in.
//
// Values go by pairs, two 16-bit halves of a word. A group of 128 columns of a row of NF4, 64 bytes, is 4 vectors of 16 pairs: pair j of
// vector `part` has columns 8j + part and 8j + 4 + part.

constexpr int64_t kGroup = 128;              // columns
constexpr int64_t kGroupPairs = kGroup / 2;  // and as many words
constexpr int kPairParts = 4;

constexpr int64_t first_of_pair(int64_t part, int64_t j) { return 8 * j + part; }  // the second is 4 columns on

// The values of two blocks: 16 of the first, then 16 of the second.
using PairTable = __m512i;

inline PairTable make_pair_table(const float* absmax) {
  const __m512 levels = _mm512_loadu_ps(kLevels);
  const __m512 low = _mm512_mul_ps(levels, _mm512_set1_ps(absmax[0])), high = _mm512_mul_ps(levels, _mm512_set1_ps(absmax[1]));
  return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

// vpermw reads 5 bits of an index: the nibble, and which of the two blocks. Per group: 3 shifts, 4 logical operations, 4 lookups.
inline Words expand_pairs(Words nibbles, PairTable table, int part) {
  constexpr int kShift[kPairParts] = {4, 0, 12, 8};  // the high nibble of a byte is the even column
  const Words second = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(16), 1);
  const Words shifted = _mm512_srli_epi16(nibbles, kShift[part]);
  constexpr int kAndOr = 0xea;  // (a & b) | c
  return _mm512_permutexvar_epi16(_mm512_ternarylogic_epi32(shifted, _mm512_set1_epi16(15), second, kAndOr), table);
}

inline Vec dot_pairs(Vec acc, Words a, Words b) {
#ifdef __GNUC__
  asm("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));  // as with vpdpbusd, GCC 12 copies and spills what the intrinsic returns
  return acc;
#else
  return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b);
#endif
}
