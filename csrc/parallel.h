// Work dealt out to PyTorch's threads.

#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace moe {

constexpr int64_t kWorthAThread = 1 << 18;  // operations: about 10 µs, twice what it takes to wake a thread

// task(0), .., task(count - 1), of about `operations` each, in any order on any thread: a task's results must not depend on either.
// Every thread takes a run of tasks at a time, so that it reads memory from end to end; runs grow shorter, so that all end together.
template <typename F>
void for_each_task(int64_t count, int64_t operations, const F& task) {
  const int64_t threads = std::min<int64_t>({at::get_num_threads(), count, count * operations / kWorthAThread});
  if (threads <= 1 || at::in_parallel_region()) {
    for (int64_t i = 0; i < count; ++i) task(i);
    return;
  }
  std::atomic<int64_t> next{0};
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t begin = next.load(); begin < count;) {
      const int64_t end = begin + std::max<int64_t>(1, (count - begin) / (threads * 4));
      if (!next.compare_exchange_weak(begin, end)) continue;  // another thread was first: `begin` is now what it left
      for (int64_t i = begin; i < end; ++i) task(i);
      begin = next.load();
    }
  });
}

}  // namespace moe
