// Everything that is written once for all instruction sets; included within the namespace of each.

template <typename From>
void convert(const From* from, int64_t count, S* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<S>(from[i]);
}

// f(0), f(1), ... with constants, for accumulators that must stay in registers: an array that a loop indexes does not, even when the loop
// is unrolled later (GCC 12 then stores every accumulator after every instruction, and int8 runs at a third of its speed).
template <typename F, int... I>
MOE_INLINE inline void repeat(F&& f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>()), ...);
}

template <int N, typename F>
MOE_INLINE inline void repeat(F&& f) {
  repeat(f, std::make_integer_sequence<int, N>());
}

// In the order in which they build on each other.
// clang-format off
#include "absmax.h"
#include "dequantize.h"
#include "decode.h"
#include "panel.h"
#include "gemm.h"
#include "int8.h"
#include "int8_decode.h"
#include "int8_panels.h"
#ifdef MOE_BF16
#include "pairs.h"
#include "pairs_transposed.h"
#endif
#include "pack.h"
#include "swiglu.h"
#include "table.h"
// clang-format on
