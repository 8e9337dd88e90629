#include "kernels/standard.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>

#define MOE_TARGET "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"
#include "kernels/target_begin.h"

namespace moe {
namespace {
#include "kernels/avx512.h"
// and then, in its terms,
#include "kernels/all.h"
}  // namespace

constexpr Kernels<float> kAvx512 = table();  // a constant: nothing of this file runs when the library is loaded
}  // namespace moe

#include "kernels/target_end.h"
#endif
