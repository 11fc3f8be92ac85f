// Which instruction set's kernels this process uses.
#ifndef EDGEMAMBA_SRC_DISPATCH_H
#define EDGEMAMBA_SRC_DISPATCH_H

#include "problem.h"

namespace edgemamba {

// One instruction set. A task is one batch element and `channels` channels from `first` on, a multiple of `width` except
// for the last; `memory` has as many floats as the matching function says, aligned to 64 bytes. float64 is not done here.
struct Kernels {
  const char* name;
  int32_t width;
  int64_t (*forward_floats)(const Problem& problem, int64_t channels);
  void (*forward)(const Problem& problem, void* y, int64_t b, int64_t first, int64_t channels, float* memory);
  int64_t (*backward_floats)(const Problem& problem, int64_t channels);
  void (*backward)(const Problem& problem, const void* dy, const Gradients& out, const Shares& shares, int64_t b,
                   int64_t first, int64_t channels, float* memory);
};

// The best that this machine can run, or the one that EDGEMAMBA_ISA names; decided at the first call.
const Kernels& kernels();

// Names of all that this machine can run, best first, separated by commas.
const char* isa_list();

}  // namespace edgemamba

#endif  // EDGEMAMBA_SRC_DISPATCH_H
