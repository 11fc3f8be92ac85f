// A validated call: what the kernels see. Plain data only, so that the per-instruction-set files may include it.
#ifndef EDGEMAMBA_SRC_PROBLEM_H
#define EDGEMAMBA_SRC_PROBLEM_H

#include <stdint.h>

#include "edgemamba/scan.h"

namespace edgemamba {

// Sizes and addresses of one selective scan; every extent has been checked. A, D and delta_bias are float32, or
// float64 where `dtype` is EM_F64.
struct Problem {
  int64_t batch;         // B
  int64_t positions;     // P
  int64_t directions;    // G
  int64_t u_directions;  // Gu: 1 or G
  int64_t channels;      // D
  int64_t states;        // N
  int64_t steps;         // S
  int32_t dtype;         // of u, delta, B, C and y
  bool softplus;
  const void* u;
  const void* delta;
  const void* A;
  const void* B;
  const void* C;
  const void* D;
  const void* delta_bias;
  const int32_t* order;
};

// Where the gradients go; nullptr: not wanted.
struct Gradients {
  void* u;
  void* delta;
  void* A;
  void* B;
  void* C;
  void* D;
  void* delta_bias;
};

}  // namespace edgemamba

#endif  // EDGEMAMBA_SRC_PROBLEM_H
