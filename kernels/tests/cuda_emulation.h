// The CUDA scan without CUDA: the launches that the plan lists, each block and thread in turn, on the host.
#ifndef EDGEMAMBA_TESTS_CUDA_EMULATION_H
#define EDGEMAMBA_TESTS_CUDA_EMULATION_H

#include "case.h"
#include "check.h"
#include "cuda_plan.h"

void test_cuda_emulation();
void test_cuda_barriers();
void test_cuda_conversions();
void test_cuda_plan();
void test_cuda_api();

struct Emulated {
  int64_t chunks = 0;
  int barriers = 0;   // of a block of the last launch that has any
  int races = 0;      // on shared memory, in all blocks
  int unwritten = 0;  // reads of shared memory that nobody had written
};

// What em_cuda_selective_scan enqueues, run now. Threads and blocks go in an order drawn from `seed`: only what a
// barrier or a launch orders is in order. `y` receives the output. `left_out`: this barrier of every block is left out.
Emulated emulate(const edgemamba::Problem& problem, int32_t algorithm, int32_t multiprocessors, unsigned seed, void* y,
                 int left_out = -1);

#endif  // EDGEMAMBA_TESTS_CUDA_EMULATION_H
