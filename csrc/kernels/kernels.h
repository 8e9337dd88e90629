// What the operators ask of an instruction set, and the forms in which they hand over weights and activations.
//
// Each kernels_*.cpp answers with a table of functions for one instruction set; `kernels<S>()` is the best table that this CPU can run.
// M rows of activations (the tokens of one expert), columns in and out of a weight, groups of W rows of a weight (W lanes of a vector).
// S is the type that is computed in: float, or double for activations in double. Nothing depends on the number of threads.

#pragma once

#include <cstdint>

namespace moe {

constexpr int64_t kBlock = 64;         // values of an NF4 weight that share an absmax
constexpr int64_t kNestedBlock = 256;  // absmax that share a nested absmax
constexpr int64_t kMaxRows = 512;      // rows of one task: its results, 64 columns of float, are 128 KB of an L2 cache of 1 MB or more
constexpr int64_t kMaxColumns = 64;    // columns of one task

enum class Dtype : int { f32, bf16, f16, f64 };

// W [rows, columns], row-major: dense values of `dtype`, or NF4 whose every value is rounded to `dtype`.
struct Matrix {
  const void* values = nullptr;  // dense values, or NF4 at two a byte
  int64_t rows = 0;
  int64_t columns = 0;  // of NF4 a multiple of 64
  Dtype dtype = Dtype::f32;
  bool nf4 = false;
  // Of NF4 alone: absmax[i] = map[absmax8[i]] * nested[(first_block + i) / 256] + offset
  const uint8_t* absmax8 = nullptr;
  const float* nested = nullptr;
  const float* map = nullptr;
  float offset = 0;
  int64_t first_block = 0;
};

// Activations in memory. Row i lies index[i] / divisor (without an index: i) times `row_stride` values from `data`.
struct Source {
  const void* data;
  Dtype dtype;
  int64_t row_stride;
  const int64_t* index = nullptr;
  int64_t divisor = 1;

  int64_t offset(int64_t i) const { return (index ? index[i] / divisor : i) * row_stride; }
};

// How activations are laid out for a product.
enum class Layout : int {
  tiles,      // for panels of expanded weights: S [tile][column][row of the tile]
  blocks,     // for few rows and NF4 expanded in registers: S [block of 64][order of expansion][row]
  int8,       // int8 in blocks of 64 with their scales, for VNNI
  pairs,      // bf16 by twos, for AVX512-BF16
  row_pairs,  // bf16 by twos for `product_transposed`: [tile][pair of columns][row of the tile]
};

struct Packed {
  void* data;
  int64_t rows;
  int64_t columns;
  Layout layout;
};

// Where the results [M, columns of a task] of a product go: overwritten, or added to.
template <typename S>
struct Results {
  S* data;
  int64_t stride;
  bool add;
};

template <typename S>
struct Kernels {
  int64_t width;        // W
  int64_t decode_rows;  // up to so many rows NF4 is expanded in registers
  bool has_pairs;       // whether it multiplies bf16

  int64_t (*packed_bytes)(int64_t rows, int64_t columns, Layout layout);
  int64_t (*tiles)(int64_t rows, Layout layout);
  // Blocks begin..end-1 of a weight of one row, of any number of columns, as dense values of its dtype into the row `out`.
  void (*dequantize)(const Matrix& w, int64_t begin, int64_t end, void* out);
  void (*pack)(const Source& source, const Packed& to, int64_t tile);

  // x times rows first_row..+W-1 of `first`, into columns 0..W-1 of the results, and of `second`, into W..2W-1. Either may be null.
  void (*product)(const Packed& x, const Matrix* first, int64_t first_row, const Matrix* second, int64_t second_row, const Results<S>& to);
  // x times columns begin..begin+63 of w, or fewer at its edge: the reduction runs over the rows of w. x is in tiles or row_pairs.
  void (*product_transposed)(const Packed& x, const Matrix& w, int64_t begin, const Results<S>& to);

  // h = silu(g) u weight of [g | u] in columns 0.. and W.. of the results.
  void (*swiglu)(const Results<S>& gu, int64_t rows, int64_t columns, const S* weights, S* h, int64_t h_stride);
  // From dh [M, columns], g, u and the weights: gradients dg, du, of the weights (added to) and, if it is not null, h.
  void (*swiglu_backward)(const Results<S>& dh, int64_t rows, int64_t columns, const S* g, const S* u, int64_t gu_stride, const S* weights,
                          S* dg, S* du, S* dweights, S* h, int64_t h_stride);
};

// AVX512-BF16 needs GCC 10 or clang 9; MSVC has not been tried with it.
#if (defined(__clang__) && __clang_major__ >= 9) || (!defined(__clang__) && defined(__GNUC__) && __GNUC__ >= 10)
#define MOE_BUILDS_BF16
#endif

extern const Kernels<float> kPortable, kAvx2, kAvx512, kAvx512Vnni, kAvx512Bf16;
extern const Kernels<double> kPortableDouble;

// The table that this operator runs: see `choose_isa` in cpu.h.
template <typename S>
const Kernels<S>& kernels();

}  // namespace moe
