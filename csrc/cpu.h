// Which instruction set runs.

#pragma once

#include <vector>

namespace moe {

enum class Isa : int { portable, avx2, avx512, avx512_vnni, avx512_bf16 };

// Those that this CPU and its operating system have, from the plainest to the best.
const std::vector<Isa>& available_isas();

// The best of them that the environment variable MOE_KERNELS_ISA allows. It is read at every call, so that tests can go through them all.
// ValueError for a name that is none.
Isa isa();

// Settles `kernels<S>()` of this thread for the operator that begins: what it packs must fit what it multiplies, whatever becomes of the
// environment meanwhile.
void choose_isa();

}  // namespace moe
