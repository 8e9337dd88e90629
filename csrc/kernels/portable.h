// Plain C++ for any CPU; the file that includes this says what S is, and how many rows a tile has.

constexpr int64_t W = 8;
constexpr int kInt8Rows = 4;
constexpr int kInt8DecodeRows = 2;
constexpr int kDecodeRows = 4;

struct Vec {
  S v[W];
};

// The vector of f(lane): loops of W that compilers turn into vector instructions, if the CPU that they compile for has any.
template <typename F>
MOE_INLINE inline Vec each_lane(F f) {
  Vec out;
  for (int64_t i = 0; i < W; ++i) out.v[i] = static_cast<S>(f(i));
  return out;
}

inline Vec set1(S x) {
  return each_lane([&](int64_t) { return x; });
}
inline Vec zero() { return set1(0); }
template <typename T>
Vec load(const T* p) {
  return each_lane([&](int64_t i) { return p[i]; });
}
template <typename T>
void store(T* p, const Vec& a) {
  for (int64_t i = 0; i < W; ++i) p[i] = static_cast<T>(a.v[i]);
}
inline Vec load_first(const S* p, int64_t n) {
  return each_lane([&](int64_t i) { return i < n ? p[i] : 0; });
}
inline void store_first(S* p, const Vec& a, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] = a.v[i];
}
inline Vec add(const Vec& a, const Vec& b) {
  return each_lane([&](int64_t i) { return a.v[i] + b.v[i]; });
}
inline Vec sub(const Vec& a, const Vec& b) {
  return each_lane([&](int64_t i) { return a.v[i] - b.v[i]; });
}
inline Vec mul(const Vec& a, const Vec& b) {
  return each_lane([&](int64_t i) { return a.v[i] * b.v[i]; });
}
inline Vec div(const Vec& a, const Vec& b) {
  return each_lane([&](int64_t i) { return a.v[i] / b.v[i]; });
}
inline Vec fma(const Vec& a, const Vec& b, const Vec& c) {  // rounded twice: where the CPU has no FMA, std::fma is a call
  return each_lane([&](int64_t i) { return a.v[i] * b.v[i] + c.v[i]; });
}
inline Vec exp(const Vec& a) {
  return each_lane([&](int64_t i) { return std::exp(a.v[i]); });
}
inline S sum(const Vec& a) {
  S total = 0;
  for (const S x : a.v) total += x;
  return total;
}

inline void transpose(Vec v[W]) {
  for (int64_t i = 0; i < W; ++i) {
    for (int64_t j = 0; j < i; ++j) std::swap(v[i].v[j], v[j].v[i]);
  }
}

// The 16 values that the nibbles of a block stand for: products in float, rounded to the dtype of the weight.
struct Table {
  S v[16];
};

inline Table make_table(float absmax, Dtype dtype) {
  Table table;
  const auto fill = [&](auto round) {
    for (int i = 0; i < 16; ++i) table.v[i] = static_cast<float>(round(kLevels[i] * absmax));
  };
  if (dtype == Dtype::bf16) {
    fill([](float x) { return c10::BFloat16(x); });
  } else if (dtype == Dtype::f16) {
    fill([](float x) { return c10::Half(x); });
  } else {
    fill([](float x) { return x; });
  }
  return table;
}

// A block stays in memory: W / 2 bytes are W values of consecutive columns.
using Nibbles = const uint8_t*;

inline Nibbles load_nibbles(const uint8_t* bytes) { return bytes; }

inline Vec expand(Nibbles nibbles, const Table& table, int64_t part) {
  const uint8_t* const bytes = nibbles + part * W / 2;
  return each_lane([&](int64_t i) { return table.v[i % 2 == 0 ? bytes[i / 2] >> 4 : bytes[i / 2] & 15]; });
}

constexpr int64_t column_of(int64_t part, int64_t lane) { return W * part + lane; }

// A block of values of T, which holds those of the table as they are.
template <typename T>
void write_block(const uint8_t* bytes, const Table& table, T* out) {
  T values[16];
  for (int i = 0; i < 16; ++i) values[i] = static_cast<T>(table.v[i]);
  for (int64_t j = 0; j < kBlock / 2; ++j) {  // one store a pair: of two stores GCC makes vector code that takes fp32 five times as long
    const T pair[2] = {values[bytes[j] >> 4], values[bytes[j] & 15]};
    std::memcpy(out + 2 * j, pair, sizeof(pair));
  }
}

inline void prefetch(const void*) {}

// Vectors of W words of 32 bits, each 4 bytes or 8 nibbles of a row, in the order of memory whatever a CPU's order of bytes is.
struct Words {
  int32_t v[W];
};
constexpr int64_t kWordBlocks = 1;  // blocks of NF4 in a vector
constexpr int kCodeZero = 128;      // the code that stands for 0

inline Words read_words(const void* p) {
  Words out;
  std::memcpy(&out, p, sizeof(out));
  return out;
}
inline Words load_words(const uint8_t* p, int64_t) { return read_words(p); }
inline Words load_int32(const int32_t* p) { return read_words(p); }
inline void store_words(uint8_t* p, const Words& a) { std::memcpy(p, &a, sizeof(a)); }
inline Words set1_word(int32_t x) {
  Words out;
  for (auto& word : out.v) word = x;
  return out;
}
inline Vec to_float(const Words& a) {
  return each_lane([&](int64_t i) { return a.v[i]; });
}
inline Vec spread(const float* factors) { return set1(factors[0]); }

inline void transpose_words(Words v[W]) {
  for (int64_t i = 0; i < W; ++i) {
    for (int64_t j = 0; j < i; ++j) std::swap(v[i].v[j], v[j].v[i]);
  }
}

template <typename F>
Words each_code(const Words& nibbles, F nibble_of) {
  uint8_t bytes[4 * W];
  std::memcpy(bytes, &nibbles, sizeof(bytes));
  for (auto& byte : bytes) byte = kLevelCodes[nibble_of(byte)];
  return read_words(bytes);
}
inline Words even_codes(const Words& nibbles) {  // the high nibble is the even column
  return each_code(nibbles, [](uint8_t byte) { return byte >> 4; });
}
inline Words odd_codes(const Words& nibbles) {
  return each_code(nibbles, [](uint8_t byte) { return byte & 15; });
}

// acc + the four products of each word's unsigned bytes of `u` and signed bytes of `s`.
inline Words dot(const Words& acc, const Words& u, const Words& s) {
  uint8_t a[4 * W];
  int8_t b[4 * W];
  std::memcpy(a, &u, sizeof(a));
  std::memcpy(b, &s, sizeof(b));
  Words out = acc;
  for (int64_t i = 0; i < W; ++i) {
    for (int64_t j = 4 * i; j < 4 * i + 4; ++j) out.v[i] += a[j] * b[j];
  }
  return out;
}
