// Working memory that a thread keeps between calls: a scan's buffers are of the size at which malloc goes to the kernel
// for fresh pages, and faulting those in on every call costs as much as a small scan.
#ifndef EDGEMAMBA_SRC_SCRATCH_H
#define EDGEMAMBA_SRC_SCRATCH_H

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace edgemamba {

struct Free {
  void operator()(float* memory) const { std::free(memory); }
};
using Floats = std::unique_ptr<float[], Free>;

// Uninitialised, aligned to a cache line. Throws std::bad_alloc.
inline Floats allocate(int64_t floats) {
  constexpr std::size_t kLine = 64;
  const std::size_t bytes = (static_cast<std::size_t>(floats) * sizeof(float) / kLine + 1) * kLine;
  Floats memory(static_cast<float*>(std::aligned_alloc(kLine, bytes)));
  if (!memory) throw std::bad_alloc();
  return memory;
}

// Zeroed, for arrays that are read where nothing was written. Throws std::bad_alloc.
inline Floats allocate_zeroed(int64_t floats) {
  Floats memory(static_cast<float*>(std::calloc(static_cast<std::size_t>(floats) + 1, sizeof(float))));
  if (!memory) throw std::bad_alloc();
  return memory;
}

// The calling thread's buffer of at least so many floats, valid until its next call. Large ones are not kept.
inline float* scratch(std::size_t wanted) {
  const auto floats = static_cast<int64_t>(wanted);
  constexpr int64_t kKept = int64_t{4} << 20;  // 16 MiB
  thread_local Floats kept;
  thread_local int64_t size = 0;
  if (floats > size || size > kKept) {
    kept.reset();
    size = 0;
    kept = allocate(floats);
    size = floats;
  }
  return kept.get();
}

}  // namespace edgemamba

#endif  // EDGEMAMBA_SRC_SCRATCH_H
