#include "scan.h"

#include <algorithm>
#include <utility>

#include "double_backward.h"
#include "double_forward.h"
#include "half.h"
#include "scratch.h"
#include "simd/kernels.h"

namespace edgemamba {
namespace {

// Below this many state updates (some 20 microseconds on one core) a second thread costs more than it brings.
constexpr int64_t kWorthAThread = 100000;
// Tasks for each thread: one to spare, for a thread that was kept from its core. Each cut costs: at D = 384 four tasks
// take 2 % longer in all than one, eight take 8 %.
constexpr int64_t kTasksPerThread = 2;
// Channels are cut at cache lines of float32, which is also a multiple of every vector width.
constexpr int64_t kLine = 16;
// A task reads all of B and C for itself; with fewer channels than this, that begins to count.
constexpr int64_t kNarrowest = 32;
// The backward pass: each block of channels keeps a share of dB and dC and sums them over its lanes, so few wide blocks are
// less work; several tasks in all keep threads busy. These depend on the call alone, so that the order in which the shares
// are added, and with it the result to the last bit, is the same for any number of threads.
constexpr int64_t kBackwardTasks = 16, kMostBackwardBlocks = 8, kBackwardBlock = 64;
// With fewer tasks than this, blocks may be as narrow as kNarrowest.
constexpr int64_t kFewTasks = 4;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int threads_for(const Problem& p, const em_executor* executor) {
  const double work =
      static_cast<double>(p.batch * p.steps) * static_cast<double>(p.directions * p.channels * p.states);
  return static_cast<int>(std::min<double>(thread_count(executor), 1 + work / kWorthAThread));
}

// How the channels are cut: `count` blocks of `size`, the last one smaller.
struct Blocks {
  int64_t size;
  int64_t count;
};

Blocks cut_channels(const Problem& p, int64_t wanted, int64_t narrowest) {
  const int64_t size = std::max(ceil_div(ceil_div(p.channels, std::max<int64_t>(1, wanted)), kLine) * kLine, narrowest);
  return {size, ceil_div(p.channels, size)};
}

Blocks cut_forward(const Problem& p, int threads) {
  const int64_t batch = std::max<int64_t>(1, p.batch);
  // What the thread with the most tasks has to do.
  const auto longest = [&](const Blocks& cut) { return ceil_div(batch * cut.count, threads) * cut.size; };
  const Blocks fewer = cut_channels(p, ceil_div(threads, batch), kNarrowest);
  if (threads == 1) return fewer;
  const Blocks more = cut_channels(p, ceil_div(threads * kTasksPerThread, batch), kNarrowest);
  // Few channels do not always divide well: 96 make three tasks of 32, which two threads finish later than two of 48.
  return longest(fewer) < longest(more) ? fewer : more;
}

Blocks cut_backward(const Problem& p) {
  const int64_t batch = std::max<int64_t>(1, p.batch);
  const int64_t few = std::min(ceil_div(kFewTasks, batch), p.channels / kNarrowest);
  const int64_t most = std::min(ceil_div(kBackwardTasks, batch), kMostBackwardBlocks);
  return cut_channels(p, std::min(most, std::max(few, p.channels / kBackwardBlock)), kNarrowest);
}

template <typename T>
void convert(const float* from, void* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) from_float(from[i], static_cast<T*>(to) + i);
}

// Adds `parts` arrays of `count` floats, which lie `stride` apart, into the first.
void add_parts(float* first, int64_t count, int64_t parts, int64_t stride) {
  for (int64_t part = 1; part < parts; ++part) {
    for (int64_t i = 0; i < count; ++i) first[i] += first[part * stride + i];
  }
}

int simd_forward(const Problem& p, void* y, float* checkpoints, const em_executor* executor) {
  const Kernels& isa = kernels();
  const int threads = threads_for(p, executor);
  const Blocks blocks = cut_forward(p, threads);
  return run_tasks(executor, threads, p.batch * blocks.count, [&](int64_t task) {
    const int64_t first = task % blocks.count * blocks.size;
    const int64_t channels = std::min(blocks.size, p.channels - first);
    isa.forward({&p, task / blocks.count, first, channels, y, checkpoints, scratch(isa.forward_scratch(p, channels))});
  });
}

// Sums over the channels (dB, dC) and over the batch (dA, dD, dbias) are kept apart for each block and each batch
// element and added in that order at the end: the result does not depend on which thread was first.
int simd_backward(const Problem& p, const void* dy, const float* checkpoints, const Gradients& out,
                  const em_executor* executor) {
  const Kernels& isa = kernels();
  const int threads = threads_for(p, executor);
  const Blocks blocks = cut_backward(p);
  const int64_t projection = p.positions * p.directions * p.states, projections = p.batch * projection;
  const int64_t weights = p.directions * p.channels, decays = weights * p.states;
  const Floats dB = allocate_zeroed(blocks.count * projections), dC = allocate_zeroed(blocks.count * projections);
  const Floats dA = allocate_zeroed(std::max<int64_t>(1, p.batch) * decays);
  const Floats dD = allocate_zeroed(std::max<int64_t>(1, p.batch) * weights);
  const Floats dbias = allocate_zeroed(std::max<int64_t>(1, p.batch) * weights);

  int status = run_tasks(executor, threads, p.batch * blocks.count, [&](int64_t task) {
    const int64_t b = task / blocks.count, block = task % blocks.count, first = block * blocks.size;
    const int64_t channels = std::min(blocks.size, p.channels - first);
    const int64_t at = block * projections + b * projection;
    const Shares shares{&dB[at], &dC[at], &dA[b * decays], &dD[b * weights], &dbias[b * weights]};
    float* const memory = scratch(isa.backward_scratch(p, channels, checkpoints != nullptr));
    isa.backward({&p, b, first, channels, dy, checkpoints, &out, shares, memory});
  });
  if (status != EM_OK) return status;

  // One batch element's projections at a time, so that the sums run on all threads too.
  status = run_tasks(executor, threads, p.batch, [&](int64_t b) {
    for (const auto& [sums, result] : {std::pair{dB.get(), out.B}, std::pair{dC.get(), out.C}}) {
      if (result == nullptr) continue;
      float* const mine = sums + b * projection;
      add_parts(mine, projection, blocks.count, projections);
      switch (p.dtype) {
        case EM_F16: convert<Float16>(mine, static_cast<Float16*>(result) + b * projection, projection); break;
        case EM_BF16: convert<BFloat16>(mine, static_cast<BFloat16*>(result) + b * projection, projection); break;
        default: convert<float>(mine, static_cast<float*>(result) + b * projection, projection);
      }
    }
  });
  const auto add_batch = [&](const Floats& parts, void* result, int64_t count) {
    if (result == nullptr) return;
    add_parts(parts.get(), count, p.batch, count);
    convert<float>(parts.get(), result, count);
  };
  add_batch(dA, out.A, decays);
  add_batch(dD, out.D, weights);
  add_batch(dbias, out.delta_bias, weights);
  return status;
}

}  // namespace

int scan_forward(const Problem& p, void* y, float* checkpoints, const em_executor* executor) {
  if (p.dtype == EM_F64) return double_forward(p, static_cast<double*>(y), executor);
  return simd_forward(p, y, checkpoints, executor);
}

int scan_backward(const Problem& p, const void* dy, const float* checkpoints, const Gradients& gradients,
                  const em_executor* executor) {
  if (p.dtype == EM_F64) return double_backward(p, static_cast<const double*>(dy), gradients, executor);
  return simd_backward(p, dy, checkpoints, gradients, executor);
}

}  // namespace edgemamba
