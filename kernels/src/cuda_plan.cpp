#include "cuda_plan.h"

#include <algorithm>
#include <cstdio>
#include <limits>

#include "edgemamba/scan_cuda.h"

namespace edgemamba {
namespace {

using cuda::kMaxThreads;
using cuda::kWarp;

constexpr int64_t kGrain = 8;  // steps of a chunk: a multiple of the kernels' tile

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

const char* type_name(int32_t dtype) { return dtype == EM_F16 ? "f16" : dtype == EM_BF16 ? "bf16" : "f32"; }

// a * b in *out; false where that overflows.
bool multiply(int64_t a, int64_t b, int64_t* out) { return !__builtin_mul_overflow(a, b, out); }

CudaWorkspace workspace_of(const CudaShape& s, int64_t chunks) {
  CudaWorkspace w = {};
  if (s.directions > 1) {
    w.step_of = s.directions * s.positions * 4;
    w.partial = s.batch * s.directions * s.steps * s.channels * 4;
  }
  if (chunks > 1) {
    w.dt_sums = s.batch * s.directions * chunks * s.channels * 4;
    w.states = w.dt_sums * s.states;
  }
  return w;
}

// --- The cost rule: clocks, of which only the ratio of the two forms matters (cuda/NOTES.md derives the numbers). ---

// Clocks for which one step of a warp keeps its scheduler: the special-function unit's, or issue slots.
double step_clocks(int states, bool with_output) {
  const double special = 8.0 * (states + 1), issue = with_output ? 6.0 * states + 54 : 4.6 * states + 42;
  return std::max(special, issue);
}

// A step takes at least its own work and the latency around it, or the scheduler's work for all of its warps.
double scan_clocks(double warps_per_scheduler, double steps, int states, bool with_output) {
  constexpr double kLatency = 100;
  const double work = step_clocks(states, with_output);
  return steps * std::max(work + kLatency, warps_per_scheduler * work);
}

double sequential_clocks(const CudaShape& s, double warps, double schedulers, int states) {
  return scan_clocks(warps / schedulers, static_cast<double>(s.steps), states, true);
}

double chunked_clocks(double warps, double schedulers, int states, int64_t chunks, int64_t chunk_steps) {
  constexpr double kTwoLaunches = 8000, kCombineChunk = 600;
  const double steps = static_cast<double>(chunk_steps), count = static_cast<double>(chunks);
  return scan_clocks(warps * (count - 1) / schedulers, steps, states, false) +
         scan_clocks(warps * count / schedulers, steps, states, true) + kCombineChunk * count + kTwoLaunches;
}

// Blocks: for all channels; to add up directions, `width` channels a thread; to combine chunks.
int64_t tiles_of(int64_t channels) { return divide_up(channels, kMaxThreads); }
int64_t reduce_blocks(const CudaShape& s, int64_t width) {
  return divide_up(s.batch * s.positions * (s.channels / width), kMaxThreads);
}
int64_t combine_blocks(const CudaShape& s) {
  return divide_up(s.batch * s.directions * s.states * s.channels, kMaxThreads);
}

// Lengths tried for a chunk: 16, 24, 32, 48, 64, ... steps.
int64_t longer(int64_t steps) { return (steps & (steps - 1)) == 0 ? steps + steps / 2 : steps / 3 * 4; }

}  // namespace

bool cuda_supports(const CudaShape& s, const char** why) {
  constexpr int64_t kInt = std::numeric_limits<int32_t>::max();
  constexpr int64_t kRow = kInt / 4;  // elements of a row whose bytes an int counts
  *why = nullptr;
  if (s.dtype != EM_F32 && s.dtype != EM_F16 && s.dtype != EM_BF16) {
    *why = "u: the CUDA scan takes float32, float16 or bfloat16";
  } else if (s.batch < 0 || s.positions < 0 || s.positions > kInt || s.steps < 0 || s.steps > s.positions ||
             s.directions < 1 || s.channels < 1 || s.states < 1) {
    *why = "selective scan: there is no such shape";
  } else if (s.states > EM_CUDA_MAX_STATES) {
    *why = "A: the CUDA scan takes at most 64 states (N)";
  } else if (s.directions > kRow / s.channels || s.directions > kRow / s.states) {
    *why = "delta: directions x channels (G x D) and directions x states (G x N) must be below 2^29 on CUDA";
  } else {
    // The largest thing counted: a chunk has at least kGrain steps, so its states are at most 64 / 8 of the positions'.
    int64_t elements = 0;
    const bool fits = multiply(s.batch, s.positions + kGrain, &elements) &&
                      multiply(elements, s.directions * s.channels, &elements) && multiply(elements, 1024, &elements);
    // Steps are counted in an int, two tiles and a block's threads past the last one. A plan takes no chunks that a
    // grid could not number.
    const bool counts = fits && s.positions <= kInt - 3 * kMaxThreads &&
                        s.batch * s.directions * tiles_of(s.channels) <= kInt && reduce_blocks(s, 1) <= kInt;
    if (!counts) *why = "selective scan: more work than one CUDA grid can number";
  }
  return *why == nullptr;
}

CudaPlan cuda_plan(const CudaShape& s, int32_t algorithm, int32_t multiprocessors, int64_t available) {
  CudaPlan plan;
  plan.tiles = tiles_of(s.channels);
  plan.threads = static_cast<int>(divide_up(divide_up(s.channels, plan.tiles), kWarp) * kWarp);
  for (int padded : {1, 4, 8, 16, 32, 64}) {
    plan.padded_states = padded;
    if (padded >= s.states) break;
  }
  plan.chunk_steps = s.steps;
  plan.workspace = workspace_of(s, 1);
  if (algorithm == EM_CUDA_SEQUENTIAL || s.batch == 0) return plan;

  const double schedulers = 4.0 * (multiprocessors > 0 ? multiprocessors : kDefaultMultiprocessors);
  const double warps = static_cast<double>(s.batch * s.directions * plan.tiles * (plan.threads / kWarp));
  // AUTO wants a clear gain; CHUNKED takes the best there is.
  double best = std::numeric_limits<double>::infinity();
  if (algorithm == EM_CUDA_AUTO) best = 0.9 * sequential_clocks(s, warps, schedulers, plan.padded_states);
  for (int64_t length = 16; length < s.steps; length = longer(length)) {
    const int64_t chunks = divide_up(s.steps, length);
    const double clocks = chunked_clocks(warps, schedulers, plan.padded_states, chunks, length);
    const int64_t blocks = std::max(s.batch * s.directions * plan.tiles * chunks, combine_blocks(s));
    if (clocks >= best || blocks > std::numeric_limits<int32_t>::max()) continue;
    const CudaWorkspace workspace = workspace_of(s, chunks);
    if (workspace.bytes() > available) continue;
    best = clocks;
    plan.chunks = chunks;
    plan.chunk_steps = length;
    plan.workspace = workspace;
  }
  return plan;
}

cuda::ScanArgs cuda_args(const Problem& p, const CudaPlan& plan, void* y, void* workspace) {
  cuda::ScanArgs args = {};
  args.u = p.u;
  args.delta = p.delta;
  args.A = static_cast<const float*>(p.A);
  args.B = p.B;
  args.C = p.C;
  args.D = static_cast<const float*>(p.D);
  args.delta_bias = static_cast<const float*>(p.delta_bias);
  args.order = p.order;
  args.y = y;
  char* base = static_cast<char*>(workspace);
  if (plan.workspace.partial_at() > 0) {
    args.step_of = reinterpret_cast<int*>(base);
    args.partial = reinterpret_cast<float*>(base + plan.workspace.partial_at());
  }
  if (plan.chunks > 1) {
    args.states = reinterpret_cast<float*>(base + plan.workspace.states_at());
    args.dt_sums = reinterpret_cast<float*>(base + plan.workspace.dt_sums_at());
  }
  args.batch = p.batch;
  args.positions = p.positions;
  args.steps = p.steps;
  args.directions = static_cast<int>(p.directions);
  args.u_directions = static_cast<int>(p.u_directions);
  args.channels = static_cast<int>(p.channels);
  args.states_per_channel = static_cast<int>(p.states);
  const int size = p.dtype == EM_F32 ? 4 : 2;
  args.u_row = args.u_directions * args.channels * size;
  args.delta_row = args.directions * args.channels * size;
  args.projection_row = args.directions * args.states_per_channel * size;
  args.y_row = args.channels * size;
  args.partial_row = args.channels * 4;
  args.chunks = static_cast<int>(plan.chunks);
  args.chunk_steps = static_cast<int>(plan.chunk_steps);
  args.tiles = static_cast<int>(plan.tiles);
  args.softplus = p.softplus ? 1 : 0;
  return args;
}

int cuda_launches(const CudaShape& s, const CudaPlan& plan, const void* y, CudaLaunch* launches) {
  int count = 0;
  const auto add = [&](const char* format, int number, int64_t blocks, int threads) {
    CudaLaunch& launch = launches[count++];
    std::snprintf(launch.kernel, sizeof launch.kernel, format, type_name(s.dtype), number);
    launch.blocks = blocks;
    launch.threads = threads;
  };
  const int64_t walks = s.batch * s.directions * plan.tiles;
  if (plan.chunks > 1) {
    add("local_%s_%d", plan.padded_states, walks * (plan.chunks - 1), plan.threads);
    add("combine_chunks", 0, combine_blocks(s), kMaxThreads);
  }
  add("scan_%s_%d", plan.padded_states, walks * plan.chunks, plan.threads);
  if (s.directions > 1) {
    // Four channels at a time, where every row of y begins at a multiple of four elements.
    const uintptr_t row = s.dtype == EM_F32 ? 16 : 8;
    const int width = s.channels % 4 == 0 && reinterpret_cast<uintptr_t>(y) % row == 0 ? 4 : 1;
    add("reduce_%s_%d", width, reduce_blocks(s, width), kMaxThreads);
  }
  return count;
}

}  // namespace edgemamba
