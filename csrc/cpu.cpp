#include "cpu.h"

#include <c10/util/Exception.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdlib>
#include <initializer_list>
#include <iterator>
#include <string>

#include "kernels/kernels.h"

#if defined(__x86_64__) || defined(_M_X64)
#define MOE_X86
#ifdef _MSC_VER
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif

namespace moe {

namespace {

thread_local Isa chosen = Isa::portable;

constexpr const char* kNames[] = {"portable", "avx2", "avx512", "avx512_vnni", "avx512_bf16"};

#ifdef MOE_X86
struct Registers {
  unsigned eax, ebx, ecx, edx;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
  Registers r{};
#ifdef _MSC_VER
  __cpuidex(reinterpret_cast<int*>(&r), static_cast<int>(leaf), static_cast<int>(subleaf));
#else
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
#endif
  return r;
}

// The registers that the operating system keeps over a switch of threads: bits 1 and 2 for AVX, 5 to 7 for AVX-512.
unsigned kept_registers() {
#ifdef _MSC_VER
  return static_cast<unsigned>(_xgetbv(0));
#else
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
#endif
}

bool has(unsigned bits, std::initializer_list<int> wanted) {
  for (const int bit : wanted) {
    if ((bits >> bit & 1) == 0) return false;
  }
  return true;
}
#endif

std::vector<Isa> find_isas() {
  std::vector<Isa> found{Isa::portable};
#ifdef MOE_X86
  const Registers basic = cpuid(1, 0), extended = cpuid(7, 0);
  if (!has(basic.ecx, {12, 27, 28, 29}) || !has(extended.ebx, {5})) return found;  // FMA, OSXSAVE, AVX, F16C; AVX2
  const unsigned kept = kept_registers();
  if (!has(kept, {1, 2})) return found;
  found.push_back(Isa::avx2);
  if (!has(extended.ebx, {16, 17, 30, 31}) || !has(kept, {5, 6, 7})) return found;  // AVX512 F, DQ, BW, VL
  found.push_back(Isa::avx512);
  if (!has(extended.ecx, {11})) return found;
  found.push_back(Isa::avx512_vnni);
#ifdef MOE_BUILDS_BF16
  if (has(cpuid(7, 1).eax, {5})) found.push_back(Isa::avx512_bf16);
#endif
#endif
  return found;
}

std::string known_names() {
  std::string names;
  for (const char* name : kNames) names += (names.empty() ? "" : ", ") + std::string(name);
  return names;
}

}  // namespace

const std::vector<Isa>& available_isas() {
  static const std::vector<Isa> isas = find_isas();
  return isas;
}

Isa isa() {
  const Isa best = available_isas().back();
  const char* const wanted = std::getenv("MOE_KERNELS_ISA");
  if (wanted == nullptr || *wanted == '\0') return best;
  for (int i = 0; i < static_cast<int>(std::size(kNames)); ++i) {
    if (std::string(wanted) == kNames[i]) return std::min(best, static_cast<Isa>(i));
  }
  TORCH_CHECK_VALUE(false, "MOE_KERNELS_ISA is '", wanted, "'; known: ", known_names());
}

void choose_isa() { chosen = isa(); }

template <>
const Kernels<float>& kernels<float>() {
#ifdef MOE_X86
  switch (chosen) {
    case Isa::avx512_bf16:
#ifdef MOE_BUILDS_BF16
      return kAvx512Bf16;
#endif
    case Isa::avx512_vnni:
      return kAvx512Vnni;
    case Isa::avx512:
      return kAvx512;
    case Isa::avx2:
      return kAvx2;
    case Isa::portable:
      break;
  }
#endif
  return kPortable;
}

template <>
const Kernels<double>& kernels<double>() {
  return kPortableDouble;
}

}  // namespace moe

TORCH_LIBRARY_FRAGMENT(moe_kernels, m) {
  m.def("cpu_isa() -> str", [] { return std::string(moe::kNames[static_cast<int>(moe::isa())]); });
  m.def("cpu_isas() -> str[]", [] {
    std::vector<std::string> names;
    for (const moe::Isa isa : moe::available_isas()) names.emplace_back(moe::kNames[static_cast<int>(isa)]);
    return names;
  });
}
