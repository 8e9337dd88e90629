// Tells ThreadSanitizer what OpenMP's threads wait for. libgomp is not built with it, so that its fork and join are not seen, and every
// array that a parallel loop reads or leaves is reported: 25 times for one quantisation. `make sanitize-thread` builds and preloads it.

#include <dlfcn.h>

extern "C" {

void __tsan_acquire(void* address);
void __tsan_release(void* address);

using Body = void (*)(void*);
using Parallel = void (*)(Body, void*, unsigned, unsigned);

// Two addresses: one alone would order a thread that ends before one that begins late, and hide their races.
struct Region {
  Body body;
  void* data;
  char fork;
  char join;
};

static void run(void* argument) {
  Region* const region = static_cast<Region*>(argument);
  __tsan_acquire(&region->fork);
  region->body(region->data);
  __tsan_release(&region->join);
}

void GOMP_parallel(Body body, void* data, unsigned threads, unsigned flags) {
  static const Parallel libgomp = reinterpret_cast<Parallel>(dlsym(RTLD_NEXT, "GOMP_parallel"));
  Region region{body, data, 0, 0};
  __tsan_release(&region.fork);
  libgomp(run, &region, threads, flags);
  __tsan_acquire(&region.join);
}

}  // extern "C"
