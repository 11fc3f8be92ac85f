// How many 8-lane fused multiply-adds one core issues in a second: the bound that benchmarks/scan_cpu.py holds the scan
// against. Prints the best of several runs. Build: c++ -O2 -mavx2 -mfma fma_rate.cpp
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

namespace {

constexpr long kRounds = 20'000'000;
constexpr int kChains = 12;  // latency 4, two a cycle: eight are in flight; a few more leave room for an uneven scheduler

// The chains are named registers in one asm block: written in C++, compilers keep an array of them in memory.
double seconds() {
  const __m256 factor = _mm256_set1_ps(0.999999f), term = _mm256_set1_ps(1e-6f);
  const auto start = std::chrono::steady_clock::now();
  asm volatile(
      "vmovaps %[b], %%ymm2\n vmovaps %[b], %%ymm3\n vmovaps %[b], %%ymm4\n vmovaps %[b], %%ymm5\n"
      "vmovaps %[b], %%ymm6\n vmovaps %[b], %%ymm7\n vmovaps %[b], %%ymm8\n vmovaps %[b], %%ymm9\n"
      "vmovaps %[b], %%ymm10\n vmovaps %[b], %%ymm11\n vmovaps %[b], %%ymm12\n vmovaps %[b], %%ymm13\n"
      "mov %[rounds], %%rcx\n"
      "1:\n"
      "vfmadd213ps %[b], %[a], %%ymm2\n vfmadd213ps %[b], %[a], %%ymm3\n vfmadd213ps %[b], %[a], %%ymm4\n"
      "vfmadd213ps %[b], %[a], %%ymm5\n vfmadd213ps %[b], %[a], %%ymm6\n vfmadd213ps %[b], %[a], %%ymm7\n"
      "vfmadd213ps %[b], %[a], %%ymm8\n vfmadd213ps %[b], %[a], %%ymm9\n vfmadd213ps %[b], %[a], %%ymm10\n"
      "vfmadd213ps %[b], %[a], %%ymm11\n vfmadd213ps %[b], %[a], %%ymm12\n vfmadd213ps %[b], %[a], %%ymm13\n"
      "dec %%rcx\n"
      "jnz 1b\n"
      :
      : [a] "x"(factor), [b] "x"(term), [rounds] "r"(kRounds)
      : "rcx", "cc", "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm8", "ymm9", "ymm10", "ymm11", "ymm12", "ymm13");
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

int main() {
  double best = seconds();
  for (int i = 0; i < 4; ++i) best = std::min(best, seconds());
  std::printf("%.6e\n", kRounds * kChains / best);
}
