#include "cuda_emulation.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>

#include "../cuda/scan_lane.h"
#include "cuda_arguments.h"

using namespace edgemamba;
using cuda::ScanArgs;

namespace {

std::vector<int> shuffled(int64_t count, std::mt19937* generator) {
  std::vector<int> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), *generator);
  return order;
}

// scan.cu's `run`, where a thread goes from one barrier to the next before another one moves.
template <typename T, int kN, bool kLocal>
void run_block(const ScanArgs& s, unsigned block, int threads, std::mt19937* generator) {
  typedef cuda::Lane<T, kN, kLocal> Thread;
  std::vector<Thread> lanes(static_cast<size_t>(threads));
  auto shared = std::make_unique<typename Thread::Shared>();
  std::memset(static_cast<void*>(shared.get()), 0x7f, sizeof *shared);  // what is not written shows
  for (int thread : shuffled(threads, generator)) {
    Thread& lane = lanes[static_cast<size_t>(thread)];
    lane.begin(s, block, thread, threads);
    lane.fetch_positions(s, 0);
    lane.stage_positions(0, *shared);
  }
  const int tiles = lanes[0].tiles();
  for (int k = -1; k < tiles; ++k) {
    for (int thread : shuffled(threads, generator)) {
      Thread& lane = lanes[static_cast<size_t>(thread)];
      lane.fetch(s, k + 1, *shared);
      lane.fetch_positions(s, k + 2);
      if (k >= 0) lane.compute(s, k, *shared);
      lane.stage(s, k + 1, *shared);
      lane.stage_positions(k + 2, *shared);
    }
  }
  for (const Thread& lane : lanes) lane.finish(s, block);
}

template <typename T, bool kLocal>
void run_states(const ScanArgs& s, const CudaLaunch& launch, int padded, std::mt19937* generator) {
  for (int block : shuffled(launch.blocks, generator)) {
    const unsigned at = static_cast<unsigned>(block);
    switch (padded) {
      case 1: run_block<T, 1, kLocal>(s, at, launch.threads, generator); break;
      case 4: run_block<T, 4, kLocal>(s, at, launch.threads, generator); break;
      case 8: run_block<T, 8, kLocal>(s, at, launch.threads, generator); break;
      case 16: run_block<T, 16, kLocal>(s, at, launch.threads, generator); break;
      case 32: run_block<T, 32, kLocal>(s, at, launch.threads, generator); break;
      case 64: run_block<T, 64, kLocal>(s, at, launch.threads, generator); break;
      default: fail("no kernel %s", launch.kernel);
    }
  }
}

template <typename Body>
void for_items(const CudaLaunch& launch, int64_t items, const Body& body) {
  if (launch.blocks * launch.threads < items) fail("%s: too small a grid", launch.kernel);
  for (int64_t i = 0; i < items; ++i) body(i);
}

// A launch by its kernel's name, as the driver would find it.
template <typename T>
void run_launch(const ScanArgs& s, const CudaLaunch& launch, std::mt19937* generator) {
  const int number = std::atoi(std::strrchr(launch.kernel, '_') + 1);
  if (std::strncmp(launch.kernel, "local_", 6) == 0) {
    run_states<T, true>(s, launch, number, generator);
  } else if (std::strncmp(launch.kernel, "scan_", 5) == 0) {
    run_states<T, false>(s, launch, number, generator);
  } else if (std::strcmp(launch.kernel, "combine_chunks") == 0) {
    for_items(launch, s.batch * s.directions * s.states_per_channel * s.channels,
              [&](int64_t i) { cuda::combine(s, i); });
  } else if (number == 4) {
    for_items(launch, s.batch * s.positions * (s.channels / 4), [&](int64_t i) { cuda::reduce<T, 4>(s, i); });
  } else {
    for_items(launch, s.batch * s.positions * s.channels, [&](int64_t i) { cuda::reduce<T, 1>(s, i); });
  }
}

}  // namespace

int64_t emulate(const Problem& problem, int32_t algorithm, int32_t multiprocessors, unsigned seed, void* y) {
  std::mt19937 generator(seed);
  const CudaShape shape = cuda_shape(problem);
  const CudaPlan plan = cuda_plan(shape, algorithm, multiprocessors);
  // Exactly what was asked for, so that the address sanitizer sees a step beyond; garbage in it, NaN as float.
  std::vector<unsigned char> workspace(static_cast<size_t>(plan.workspace.bytes()), 0xff);
  if (problem.directions == 1) {
    const int64_t element = problem.dtype == EM_F32 ? 4 : 2;
    std::memset(y, 0, static_cast<size_t>(problem.batch * problem.positions * problem.channels * element));
  } else {
    std::memset(workspace.data(), 0xff, static_cast<size_t>(problem.directions * problem.positions * 4));
  }
  const ScanArgs args = cuda_args(problem, plan, y, workspace.data());
  CudaLaunch launches[kMaxLaunches];
  const int count = cuda_launches(shape, plan, y, launches);
  for (int i = 0; i < count; ++i) {
    switch (problem.dtype) {
      case EM_F16: run_launch<cuda::F16>(args, launches[i], &generator); break;
      case EM_BF16: run_launch<cuda::BF16>(args, launches[i], &generator); break;
      default: run_launch<cuda::F32>(args, launches[i], &generator);
    }
  }
  return plan.chunks;
}
