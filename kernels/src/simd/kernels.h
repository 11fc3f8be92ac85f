// What an instruction set offers, and the units of work that it is given. Plain data and function pointers only: the
// per-instruction-set files include nothing from the standard library that could become a shared inline function, of
// which the linker would keep one copy, perhaps the one that this machine cannot run.
#ifndef EDGEMAMBA_SRC_SIMD_KERNELS_H
#define EDGEMAMBA_SRC_SIMD_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "problem.h"

namespace edgemamba {

// One batch element, channels [first, first + width), every direction: tasks never write to the same place.
struct ForwardTask {
  const Problem* problem;
  int64_t batch, first, width;
  void* y;
  float* checkpoints;  // the whole call's, or null
  float* scratch;      // forward_scratch() floats, aligned to 64 bytes
};

// What a backward task adds up and leaves to its caller to combine, in float32. dB and dC are this block of channels'
// share of one batch element's (P, G, N), and come zeroed; dA (G, D, N), dD and dbias (G, D) are one batch element's,
// of which a task writes its channels.
struct Shares {
  float* dB;
  float* dC;
  float* dA;
  float* dD;
  float* dbias;
};

// The gradients of one such task. Those of u and delta go straight to `gradients`, the others to `shares`.
struct BackwardTask {
  const Problem* problem;
  int64_t batch, first, width;
  const void* dy;
  const float* checkpoints;  // the whole call's, or null
  const Gradients* gradients;
  Shares shares;
  float* scratch;  // backward_scratch() floats, aligned to 64 bytes
};

struct Kernels {
  const char* name;
  size_t (*forward_scratch)(const Problem& problem, int64_t width);
  void (*forward)(const ForwardTask& task);
  size_t (*backward_scratch)(const Problem& problem, int64_t width, bool checkpointed);
  void (*backward)(const BackwardTask& task);
};

// The one in use, chosen at the first call; never null.
const Kernels& kernels();

// Names of all that this machine can run, best first, separated by commas.
const char* kernels_list();

}  // namespace edgemamba

#endif  // EDGEMAMBA_SRC_SIMD_KERNELS_H
