// The CUDA scan without CUDA: the launches that the plan lists, each block and thread in turn, on the host.
#ifndef EDGEMAMBA_TESTS_CUDA_EMULATION_H
#define EDGEMAMBA_TESTS_CUDA_EMULATION_H

#include "case.h"
#include "check.h"
#include "cuda_plan.h"

void test_cuda_emulation();
void test_cuda_plan();
void test_cuda_api();

// What em_cuda_selective_scan enqueues, run now. Threads and blocks go in an order drawn from `seed`: only what a barrier
// or a launch orders is in order. `y` receives the output. Returns the chunks that were used.
int64_t emulate(const edgemamba::Problem& problem, int32_t algorithm, int32_t multiprocessors, unsigned seed, void* y);

#endif  // EDGEMAMBA_TESTS_CUDA_EMULATION_H
