// The headers that every kernels_*.cpp needs, before it chooses its instruction set: inline functions of the standard library that were
// compiled for AVX-512 could be the copies that the linker keeps for all.

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <utility>

#include "kernels.h"
#include "nf4.h"

#if defined(__GNUC__)
#define MOE_INLINE __attribute__((always_inline))
#else
#define MOE_INLINE
#endif
