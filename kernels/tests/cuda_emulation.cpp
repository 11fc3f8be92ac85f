#include "cuda_emulation.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>

#include "../cuda/scan_block.h"
#include "cuda_arguments.h"
#include "cuda_block.h"

using namespace edgemamba;
using cuda::ScanArgs;

namespace {

struct Machine {
  std::mt19937 generator;
  emulation::Block block;
  Emulated done;
};

template <typename T, int kN, bool kLocal>
void run_blocks(const ScanArgs& s, const CudaLaunch& launch, Machine* machine) {
  typedef cuda::Lane<T, kN, kLocal, emulation::Watched> Thread;
  std::vector<unsigned> blocks(static_cast<size_t>(launch.blocks));
  std::iota(blocks.begin(), blocks.end(), 0u);
  std::shuffle(blocks.begin(), blocks.end(), machine->generator);
  const auto barrier = [machine] { machine->block.barrier(); };
  for (unsigned block : blocks) {
    const auto shared = std::make_unique<typename Thread::Shared>();
    machine->block.run(launch.threads,
                       [&](int thread) { cuda::walk<Thread>(s, block, thread, launch.threads, *shared, barrier); });
  }
  machine->done.barriers = machine->block.barriers();
}

template <typename T, bool kLocal>
void run_states(const ScanArgs& s, const CudaLaunch& launch, int padded, Machine* machine) {
  switch (padded) {
    case 1: return run_blocks<T, 1, kLocal>(s, launch, machine);
    case 4: return run_blocks<T, 4, kLocal>(s, launch, machine);
    case 8: return run_blocks<T, 8, kLocal>(s, launch, machine);
    case 16: return run_blocks<T, 16, kLocal>(s, launch, machine);
    case 32: return run_blocks<T, 32, kLocal>(s, launch, machine);
    case 64: return run_blocks<T, 64, kLocal>(s, launch, machine);
    default: fail("no kernel %s", launch.kernel);
  }
}

template <typename Body>
void for_items(const CudaLaunch& launch, int64_t items, const Body& body) {
  if (launch.blocks * launch.threads < items) fail("%s: too small a grid", launch.kernel);
  for (int64_t i = 0; i < items; ++i) body(i);
}

// A launch by its kernel's name, as the driver would find it.
template <typename T>
void run_launch(const ScanArgs& s, const CudaLaunch& launch, Machine* machine) {
  const int number = std::atoi(std::strrchr(launch.kernel, '_') + 1);
  if (std::strncmp(launch.kernel, "local_", 6) == 0) {
    run_states<T, true>(s, launch, number, machine);
  } else if (std::strncmp(launch.kernel, "scan_", 5) == 0) {
    run_states<T, false>(s, launch, number, machine);
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

Emulated emulate(const Problem& problem, int32_t algorithm, int32_t multiprocessors, unsigned seed, void* y,
                 int left_out) {
  Machine machine{std::mt19937(seed), emulation::Block(seed, left_out), {}};
  const CudaShape shape = cuda_shape(problem);
  const CudaPlan plan = cuda_plan(shape, algorithm, multiprocessors);
  // Exactly what was asked for, so that the address sanitizer sees a step beyond; garbage in it, NaN as float.
  std::vector<unsigned char> workspace(static_cast<size_t>(plan.workspace.bytes()), 0xff);
  if (problem.directions == 1) {
    const int64_t element = problem.dtype == EM_F32 ? 4 : 2;
    const int64_t bytes = problem.batch * problem.positions * problem.channels * element;
    if (bytes > 0) std::memset(y, 0, static_cast<size_t>(bytes));
  } else {
    std::memset(workspace.data(), 0xff, static_cast<size_t>(problem.directions * problem.positions * 4));
  }
  const ScanArgs args = cuda_args(problem, plan, y, workspace.data());
  CudaLaunch launches[kMaxLaunches];
  const int count = cuda_launches(shape, plan, y, launches);
  for (int i = 0; i < count; ++i) {
    switch (problem.dtype) {
      case EM_F16: run_launch<cuda::F16>(args, launches[i], &machine); break;
      case EM_BF16: run_launch<cuda::BF16>(args, launches[i], &machine); break;
      default: run_launch<cuda::F32>(args, launches[i], &machine);
    }
  }
  return {plan.chunks, machine.done.barriers, machine.block.races(), machine.block.unwritten()};
}
