// What the machine can do at best, for `benchmarks.cpu.probe`: reading memory, fp32 FMA, and int8 products (vpdpbusd) by vector width.
// Compiled when it is wanted. Instruction sets are function attributes; the caller asks `supports` first, so that it runs on any x86.

#include <ATen/Parallel.h>
#include <torch/extension.h>

#include <algorithm>
#include <cstdint>
#include <string>

#if defined(__x86_64__) && defined(__GNUC__)
#define X86 1
#include <immintrin.h>
#endif

namespace {

// A cache line; wider than the baseline's registers, which is fine: loads are not what limits reading memory.
typedef int64_t Line __attribute__((vector_size(64)));

// XOR of `lines` lines, read as `kStreams` streams at once: more pages are then open, and more prefetchers run, than with one stream.
template <int kStreams>
int64_t read_lines(const Line* data, int64_t lines) {
  constexpr int64_t kAhead = 16;  // lines: 1 KiB
  const int64_t each = lines / kStreams;
  Line sum = {};
  for (int64_t i = 0; i < each; ++i) {
    for (int s = 0; s < kStreams; ++s) {
      const Line* line = data + s * each + i;
      __builtin_prefetch(line + kAhead);
      sum ^= *line;
    }
  }
  int64_t folded = 0;
  for (int j = 0; j < 8; ++j) folded ^= sum[j];
  return folded;
}

int64_t read_streams(const Line* data, int64_t lines, int64_t streams) {
  switch (streams) {
    case 1:
      return read_lines<1>(data, lines);
    case 2:
      return read_lines<2>(data, lines);
    case 4:
      return read_lines<4>(data, lines);
    case 8:
      return read_lines<8>(data, lines);
    default:
      return read_lines<16>(data, lines);
  }
}

// Runs body(thread) on each of `threads` threads of PyTorch.
template <typename Body>
void on_threads(int64_t threads, const Body& body) {
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) body(thread);
  });
}

// Reads the buffer once, each thread a part of its own. The result keeps the reads from being left out.
int64_t read_buffer(const at::Tensor& buffer, int64_t streams, int64_t threads) {
  const Line* data = static_cast<const Line*>(buffer.const_data_ptr());
  const int64_t lines = buffer.numel() * buffer.element_size() / 64 / threads;
  std::vector<int64_t> found(threads);
  on_threads(threads, [&](int64_t thread) { found[thread] = read_streams(data + thread * lines, lines, streams); });
  int64_t folded = 0;
  for (int64_t part : found) folded ^= part;
  return folded;
}

#ifdef X86
// Enough independent accumulators that latency does not show, and few enough for the registers: 32 with AVX-512, 16 before.
constexpr int kWide = 24;
constexpr int kNarrow = 12;

#define PEAK(name, isa, count, type, zero, step, fold)                                      \
  __attribute__((target(isa))) float name(int64_t turns) {                                  \
    type sum[count];                                                                        \
    _Pragma("GCC unroll 32") for (auto& part : sum) {                                       \
      part = zero;                                                                          \
      asm volatile("" : "+x"(part));                                                        \
    }                                                                                       \
    type a = zero, b = zero;                                                                \
    asm volatile("" : "+x"(a), "+x"(b));                                                    \
    for (int64_t i = 0; i < turns; ++i) {                                                   \
      _Pragma("GCC unroll 32") for (auto& part : sum) part = step(part, a, b);              \
    }                                                                                       \
    _Pragma("GCC unroll 32") for (int j = 1; j < count; ++j) sum[0] = fold(sum[0], sum[j]); \
    return reinterpret_cast<float*>(&sum[0])[0];                                            \
  }

#define FMA512(c, a, b) _mm512_fmadd_ps(a, b, c)
#define BF16512(c, a, b) _mm512_dpbf16_ps(c, (__m512bh)(a), (__m512bh)(b))
#define FMA256(c, a, b) _mm256_fmadd_ps(a, b, c)
PEAK(fma512, "avx512f", kWide, __m512, _mm512_setzero_ps(), FMA512, _mm512_add_ps)
PEAK(fma256, "avx2,fma", kNarrow, __m256, _mm256_setzero_ps(), FMA256, _mm256_add_ps)
PEAK(vnni512, "avx512f,avx512vnni", kWide, __m512i, _mm512_setzero_si512(), _mm512_dpbusd_epi32, _mm512_add_epi32)
PEAK(bf16512, "avx512f,avx512bf16", kWide, __m512, _mm512_setzero_ps(), BF16512, _mm512_add_ps)
PEAK(vnni256, "avx2,avx512vnni,avx512vl", kWide, __m256i, _mm256_setzero_si256(), _mm256_dpbusd_epi32, _mm256_add_epi32)

struct Kernel {
  float (*run)(int64_t);
  int64_t operations;  // of one turn: a multiplication and an addition are two
};

bool find(const std::string& name, Kernel& kernel) {
  __builtin_cpu_init();
  const bool wide = __builtin_cpu_supports("avx512f"), vnni = __builtin_cpu_supports("avx512vnni");
  if (name == "fma512" && wide)
    kernel = {fma512, kWide * 16 * 2};
  else if (name == "fma256" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    kernel = {fma256, kNarrow * 8 * 2};
  else if (name == "bf16512" && __builtin_cpu_supports("avx512bf16"))
    kernel = {bf16512, kWide * 32 * 2};
  else if (name == "vnni512" && vnni)
    kernel = {vnni512, kWide * 64 * 2};
  else if (name == "vnni256" && vnni && __builtin_cpu_supports("avx512vl"))
    kernel = {vnni256, kWide * 32 * 2};
  else
    return false;
  return true;
}
#else
struct Kernel {
  float (*run)(int64_t);
  int64_t operations;
};
bool find(const std::string&, Kernel&) { return false; }
#endif

bool supports(const std::string& name) {
  Kernel kernel{};
  return find(name, kernel);
}

// Operations done by `turns` turns of a kernel on each thread; to be timed from outside.
int64_t compute(const std::string& name, int64_t turns, int64_t threads) {
  Kernel kernel{};
  TORCH_CHECK(find(name, kernel), name, " does not run on this machine");
  std::vector<float> found(threads);
  on_threads(threads, [&](int64_t thread) { found[thread] = kernel.run(turns); });
  return kernel.operations * turns * threads + (found[0] == 1.0f);  // used, or the loop may be left out; it is 0
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("read", &read_buffer, py::call_guard<py::gil_scoped_release>());
  m.def("compute", &compute, py::call_guard<py::gil_scoped_release>());
  m.def("supports", &supports);
}
