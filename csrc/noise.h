// The noise of a router: `standard_normal` of moe_kernels/noise.py, whose bits these are.

#pragma once

#include <cmath>
#include <cstdint>

namespace moe {

// Number `index` of the stream of `seed`: Philox-4x32-10 with counter (index, 0) and key seed, then Box-Muller in fp64, rounded to fp32.
//
// log and cos of two libraries may differ in the last bit of fp64; of 2^29 such numbers one then rounds to another fp32.
inline float standard_normal(uint64_t seed, uint64_t index) {
  constexpr uint64_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
  uint32_t word0 = static_cast<uint32_t>(index), word1 = static_cast<uint32_t>(index >> 32), word2 = 0, word3 = 0;
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = word0 * kMultiplier0, product1 = word2 * kMultiplier1;
    word0 = static_cast<uint32_t>(product1 >> 32) ^ word1 ^ key0;
    word1 = static_cast<uint32_t>(product1);
    word2 = static_cast<uint32_t>(product0 >> 32) ^ word3 ^ key1;
    word3 = static_cast<uint32_t>(product0);
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  constexpr double kTwoTo32 = 4294967296.0, kTwoPi = 6.283185307179586;
  const double radius = std::sqrt(-2 * std::log((word0 + 1.0) / kTwoTo32));  // of a uniform in (0, 1]
  return static_cast<float>(radius * std::cos(word1 * (kTwoPi / kTwoTo32)));
}

}  // namespace moe
