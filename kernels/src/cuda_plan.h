// Which kernels a CUDA scan launches, on what grids, with what memory: host arithmetic, no driver.
#ifndef EDGEMAMBA_SRC_CUDA_PLAN_H
#define EDGEMAMBA_SRC_CUDA_PLAN_H

#include <stddef.h>
#include <stdint.h>

#include "../cuda/scan_args.h"
#include "problem.h"

namespace edgemamba {

// The extents of one scan, and the element type.
struct CudaShape {
  int64_t batch, positions, channels, directions, states, steps;
  int32_t dtype;
};

// Bytes of each part of the workspace; parts begin at multiples of kCudaAlignment, in this order.
constexpr int64_t kCudaAlignment = 256;
struct CudaWorkspace {
  int64_t step_of, partial, states, dt_sums;
  int64_t bytes() const { return dt_sums_at() + dt_sums; }
  int64_t partial_at() const { return aligned(step_of); }
  int64_t states_at() const { return partial_at() + aligned(partial); }
  int64_t dt_sums_at() const { return states_at() + aligned(states); }
  static int64_t aligned(int64_t bytes) { return (bytes + kCudaAlignment - 1) / kCudaAlignment * kCudaAlignment; }
};

struct CudaPlan {
  int64_t chunks = 1, chunk_steps = 0;  // chunks == 1: the sequential form
  int threads = 0;                      // of a scanning block
  int64_t tiles = 0;                    // blocks for all channels
  int padded_states = 0;                // the kernels' N: 1, 4, 8, 16, 32 or 64
  CudaWorkspace workspace = {};
};

// false where the operator has no such shape, dtype or number of states on CUDA, with what is wrong in `*why`.
bool cuda_supports(const CudaShape& shape, const char** why);

// For a supported shape. `multiprocessors` 0: kDefaultMultiprocessors. `available` bytes of workspace: CHUNKED takes as many
// chunks as fit, AUTO and CHUNKED fall back to the sequential form, which may still need more than is available.
constexpr int kDefaultMultiprocessors = 64;
CudaPlan cuda_plan(const CudaShape& shape, int32_t algorithm, int32_t multiprocessors, int64_t available = INT64_MAX);

// The arguments of the kernels, with the workspace's parts at `workspace`.
cuda::ScanArgs cuda_args(const Problem& problem, const CudaPlan& plan, void* y, void* workspace);

// One launch: the kernel by name, blocks of `threads`.
struct CudaLaunch {
  char kernel[24];
  int64_t blocks;
  int threads;
};

// The launches of one scan, in order; returns how many (at most 4).
constexpr int kMaxLaunches = 4;
int cuda_launches(const CudaShape& shape, const CudaPlan& plan, const void* y, CudaLaunch* launches);

}  // namespace edgemamba

#endif  // EDGEMAMBA_SRC_CUDA_PLAN_H
