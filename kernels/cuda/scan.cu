// The kernels: 3 element types x 6 numbers of states x (scan, local), combine_chunks and the reductions. Names are
// scan_<type>_<N>, local_<type>_<N>, combine_chunks, reduce_<type>_<width>; src/cuda_plan.cpp spells them and sizes their grids.
#include "scan_block.h"

using namespace edgemamba::cuda;

namespace {

struct Barrier {
  __device__ __forceinline__ void operator()() const { __syncthreads(); }
};

template <typename T, int kN, bool kLocal>
__device__ __forceinline__ void run(const ScanArgs& s) {
  typedef Lane<T, kN, kLocal> Thread;
  __shared__ typename Thread::Shared shared;
  walk<Thread>(s, blockIdx.x, static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x), shared, Barrier());
}

__device__ __forceinline__ long long item() {
  return static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
}

}  // namespace

// Blocks of 128 threads that must fit a multiprocessor: a cap of 168 registers up to 16 states. With 128 the compiler still
// fits, but by reusing ten registers all through the step, so that a warp waits for itself.
#define EM_BLOCKS(n) ((n) <= 16 ? 3 : 2)

#define EM_SCAN(type, name, n)                                                                                   \
  extern "C" __global__ void __launch_bounds__(kMaxThreads, EM_BLOCKS(n)) scan_##name##_##n(const ScanArgs s) {  \
    run<type, n, false>(s);                                                                                      \
  }                                                                                                              \
  extern "C" __global__ void __launch_bounds__(kMaxThreads, EM_BLOCKS(n)) local_##name##_##n(const ScanArgs s) { \
    run<type, n, true>(s);                                                                                       \
  }

#define EM_REDUCE(type, name, width)                                                                            \
  extern "C" __global__ void __launch_bounds__(kMaxThreads) reduce_##name##_##width(const ScanArgs s) {         \
    if (item() < s.batch * s.positions * (s.channels / width)) reduce<type, width>(s, item());                  \
  }

#define EM_TYPE(type, name) \
  EM_SCAN(type, name, 1)    \
  EM_SCAN(type, name, 4)    \
  EM_SCAN(type, name, 8)    \
  EM_SCAN(type, name, 16)   \
  EM_SCAN(type, name, 32)   \
  EM_SCAN(type, name, 64)   \
  EM_REDUCE(type, name, 1)  \
  EM_REDUCE(type, name, 4)

EM_TYPE(F32, f32)
EM_TYPE(F16, f16)
EM_TYPE(BF16, bf16)

extern "C" __global__ void __launch_bounds__(kMaxThreads) combine_chunks(const ScanArgs s) {
  if (item() < s.batch * s.directions * s.states_per_channel * s.channels) combine(s, item());
}
