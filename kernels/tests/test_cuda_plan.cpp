// The plan: which form for which shape, workspaces, grids.
#include <cstring>

#include "../cuda/scan_lane.h"
#include "cuda_emulation.h"
#include "edgemamba/scan_cuda.h"

using namespace edgemamba;

namespace {

constexpr int kH200 = 132, kOrin = 16;
constexpr CudaShape kVMamba = {64, 3136, 192, 4, 16, 3136, EM_F16};
constexpr CudaShape kVim = {256, 197, 384, 2, 16, 197, EM_F16};
constexpr CudaShape kOneImage = {1, 6084, 384, 2, 16, 6084, EM_F16};

int32_t choice(const CudaShape& s, int multiprocessors) {
  return em_cuda_scan_algorithm(s.batch, s.positions, s.channels, s.directions, s.states, s.steps, s.dtype,
                                multiprocessors);
}

size_t bytes(const CudaShape& s, int32_t algorithm, int multiprocessors) {
  return em_cuda_scan_workspace(s.batch, s.positions, s.channels, s.directions, s.states, s.steps, s.dtype, algorithm,
                                multiprocessors);
}

void expect(const char* what, int64_t found, int64_t expected) {
  if (found != expected) {
    fail("%s: %lld, expected %lld", what, static_cast<long long>(found), static_cast<long long>(expected));
  }
}

void choices() {
  expect("VMamba, 64 pictures", choice(kVMamba, kH200), EM_CUDA_SEQUENTIAL);
  expect("Vim, 256 pictures", choice(kVim, kH200), EM_CUDA_SEQUENTIAL);
  expect("Vim, 256 pictures, Orin", choice(kVim, kOrin), EM_CUDA_SEQUENTIAL);
  expect("one large picture", choice(kOneImage, kH200), EM_CUDA_CHUNKED);
  expect("one large picture, unknown device", choice(kOneImage, 0), EM_CUDA_CHUNKED);
  expect("a few steps", choice({1, 16, 64, 1, 16, 16, EM_F32}, kH200), EM_CUDA_SEQUENTIAL);
  expect("no batch", choice({0, 6084, 384, 2, 16, 6084, EM_F16}, kH200), EM_CUDA_SEQUENTIAL);
  expect("float64", choice({1, 64, 64, 1, 16, 64, EM_F64}, kH200), 0);
}

void workspaces() {
  CudaShape s = kVMamba;
  expect("VMamba", static_cast<int64_t>(bytes(s, EM_CUDA_SEQUENTIAL, kH200)),
         4 * 3136 * 4 + 64LL * 4 * 3136 * 192 * 4);  // step_of, partial
  expect("auto is sequential", static_cast<int64_t>(bytes(s, EM_CUDA_AUTO, kH200)),
         static_cast<int64_t>(bytes(s, EM_CUDA_SEQUENTIAL, kH200)));
  s.directions = 1;
  expect("one direction", static_cast<int64_t>(bytes(s, EM_CUDA_SEQUENTIAL, kH200)), 0);
  const CudaPlan plan = cuda_plan(kOneImage, EM_CUDA_CHUNKED, kH200);
  expect("chunks cover the steps", plan.chunks, (6084 + plan.chunk_steps - 1) / plan.chunk_steps);
  expect("whole tiles", plan.chunk_steps % 8, 0);
  expect("chunked", static_cast<int64_t>(bytes(kOneImage, EM_CUDA_CHUNKED, kH200)), plan.workspace.bytes());
  for (int64_t at : {plan.workspace.partial_at(), plan.workspace.states_at(), plan.workspace.dt_sums_at()}) {
    expect("aligned", at % kCudaAlignment, 0);
  }
  // Less memory: fewer chunks, then none.
  const CudaPlan tight = cuda_plan(kOneImage, EM_CUDA_CHUNKED, kH200, plan.workspace.bytes() - 1);
  if (tight.chunks >= plan.chunks || tight.chunks < 2) fail("tight: %lld chunks", static_cast<long long>(tight.chunks));
  const int64_t sequential = static_cast<int64_t>(bytes(kOneImage, EM_CUDA_SEQUENTIAL, kH200));
  expect("none fit", cuda_plan(kOneImage, EM_CUDA_AUTO, kH200, sequential).chunks, 1);
  for (const CudaShape& bad :
       {CudaShape{1, 8, 4, 1, 65, 8, EM_F32}, CudaShape{1, 8, 4, 1, 4, 9, EM_F32}, CudaShape{1, 8, 4, 0, 4, 8, EM_F32},
        CudaShape{-1, 8, 4, 1, 4, 8, EM_F32}, CudaShape{1LL << 62, 8, 4, 1, 4, 8, EM_F32},
        CudaShape{1, 8, 4, 1, 4, 8, EM_F64}, CudaShape{1, 8, 1LL << 40, 1 << 20, 4, 8, EM_F32}}) {
    expect("unsupported", static_cast<int64_t>(bytes(bad, EM_CUDA_AUTO, 0)), -1);
  }
  expect("no such algorithm", static_cast<int64_t>(bytes(kVim, 3, 0)), -1);
}

void launches() {
  CudaLaunch found[kMaxLaunches];
  CudaPlan plan = cuda_plan(kVMamba, EM_CUDA_AUTO, kH200);
  expect("threads", plan.threads, 96);
  expect("launches", cuda_launches(kVMamba, plan, nullptr, found), 2);
  expect("blocks", found[0].blocks, 64 * 4 * 2);
  if (std::strcmp(found[0].kernel, "scan_f16_16") != 0 || std::strcmp(found[1].kernel, "reduce_f16_4") != 0) {
    fail("%s, %s", found[0].kernel, found[1].kernel);
  }
  expect("reduction", found[1].blocks, 64 * 3136 * 48 / 128);
  const void* odd = reinterpret_cast<const void*>(uintptr_t{2});
  cuda_launches(kVMamba, plan, odd, found);
  if (std::strcmp(found[1].kernel, "reduce_f16_1") != 0) fail("unaligned y: %s", found[1].kernel);
  plan = cuda_plan(kOneImage, EM_CUDA_CHUNKED, kH200);
  expect("chunked launches", cuda_launches(kOneImage, plan, nullptr, found), 4);
  expect("first pass", found[0].blocks, 2 * 3 * (plan.chunks - 1));
  expect("last pass", found[2].blocks, 2 * 3 * plan.chunks);
  const struct {
    int64_t channels;
    int threads;
    int64_t tiles;
  } widths[] = {{1, 32, 1}, {96, 96, 1}, {128, 128, 1}, {129, 96, 2}, {384, 128, 3}, {768, 128, 6}};
  for (const auto& width : widths) {
    plan = cuda_plan({1, 8, width.channels, 1, 16, 8, EM_F32}, EM_CUDA_AUTO, kH200);
    expect("threads by width", plan.threads, width.threads);
    expect("tiles by width", plan.tiles, width.tiles);
  }
  for (int64_t states = 1; states <= 64; ++states) {
    plan = cuda_plan({1, 8, 4, 1, states, 8, EM_F32}, EM_CUDA_AUTO, kH200);
    if (plan.padded_states < states || (states > 1 && plan.padded_states > 4 * states)) {
      fail("%lld states padded to %d", static_cast<long long>(states), plan.padded_states);
    }
  }
}

// Tensors of more than 2^31 elements, and of more bytes than 32 bits count.
void large_shapes() {
  const CudaShape shape = {256, 12544, 768, 4, 16, 12544, EM_F16};
  constexpr int64_t kDelta = 256LL * 12544 * 4 * 768, kY = 256LL * 12544 * 768;
  expect("large: algorithm", choice(shape, kH200), EM_CUDA_SEQUENTIAL);
  expect("large: workspace", static_cast<int64_t>(bytes(shape, EM_CUDA_AUTO, kH200)), 4 * 12544 * 4 + kDelta * 4);
  const CudaPlan plan = cuda_plan(shape, EM_CUDA_AUTO, kH200);
  CudaLaunch found[kMaxLaunches];
  expect("large: launches", cuda_launches(shape, plan, nullptr, found), 2);
  expect("large: scan", found[0].blocks, 256 * 4 * 6);
  expect("large: reduction", found[1].blocks, kY / 4 / 128);

  Problem problem = {};
  problem.batch = 256, problem.positions = problem.steps = 12544, problem.directions = problem.u_directions = 4;
  problem.channels = 768, problem.states = 16, problem.dtype = EM_F16;
  const cuda::ScanArgs args = cuda_args(problem, plan, nullptr, nullptr);
  const cuda::Block last = cuda::block_at(static_cast<unsigned>(found[0].blocks - 1), 6, 1, 4);
  if (last.batch != 255 || last.direction != 3 || last.chunk != 0 || last.tile != 5) fail("large: the last block");
  // The last element of each tensor, as the last thread of the last block reaches it.
  const auto* const base = reinterpret_cast<const unsigned short*>(uintptr_t{1} << 45);
  const auto reached = [&](cuda::Index start, int row, int64_t column) {
    return static_cast<int64_t>(cuda::rows_on(base + start + column, 12543, row) - base);
  };
  expect("large: u", reached(cuda::u_start(args, 255, 3), args.u_row, 767), kDelta - 1);
  expect("large: delta", reached(cuda::input_start(args, 255, 3), args.delta_row, 767), kDelta - 1);
  expect("large: B", reached(cuda::projection_start(args, 255, 3), args.projection_row, 15),
         256LL * 12544 * 4 * 16 - 1);
  expect("large: y", reached(255LL * 12544 * 768, args.y_row, 767), kY - 1);
  expect("large: partial", cuda::partial_start(args, 255, 3) + 12543LL * 768 + 767, kDelta - 1);
  // Past what a grid, or an int of steps, can number.
  for (const CudaShape& bad :
       {CudaShape{1 << 20, 1 << 20, 1, 1, 1, 1, EM_F16}, CudaShape{1 << 28, 1, 1024, 2, 1, 1, EM_F16},
        CudaShape{1, (1LL << 31) - 1, 1, 1, 1, 1, EM_F16}}) {
    expect("too large", static_cast<int64_t>(bytes(bad, EM_CUDA_AUTO, 0)), -1);
  }
}

}  // namespace

void test_cuda_plan() {
  choices();
  workspaces();
  launches();
  large_shapes();
}
