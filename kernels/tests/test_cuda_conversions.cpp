// The element types of the kernels beside those of the CPU's: every 16-bit pattern, and float32 from end to end.
#include <cmath>

#include "../cuda/scan_step.h"
#include "cuda_emulation.h"
#include "half.h"

namespace {

// `Mine` is the kernels' type, `Theirs` the CPU's. NaN have no one pattern: that both are one is enough.
template <typename Mine, typename Theirs>
void check_type(const char* name) {
  using namespace edgemamba;
  for (uint32_t pattern = 0; pattern < 0x10000; ++pattern) {
    const auto bits = static_cast<unsigned short>(pattern);
    const float value = cuda::to_float(Mine(), bits), expected = to_float(Theirs{bits});
    unsigned short back = 0;
    cuda::to_bits(Mine(), value, &back);
    const bool same = std::isnan(expected) ? std::isnan(value) && std::isnan(cuda::to_float(Mine(), back))
                                           : cuda::as_bits(value) == cuda::as_bits(expected) && back == bits;
    if (!same) return fail("%s %04x: %g, expected %g, and back %04x", name, pattern, value, expected, back);
  }
  // Neighbours of every exponent's ties and ends among them: the step has no factor in common with 2^32.
  for (uint64_t pattern = 0; pattern < uint64_t{1} << 32; pattern += 2049) {
    const float value = cuda::as_float(static_cast<uint32_t>(pattern));
    unsigned short found = 0;
    Theirs expected;
    cuda::to_bits(Mine(), value, &found);
    from_float(value, &expected);
    const bool same = std::isnan(value) ? std::isnan(cuda::to_float(Mine(), found)) : found == expected.bits;
    if (!same) return fail("%s from %g: %04x, expected %04x", name, value, found, expected.bits);
  }
}

}  // namespace

void test_cuda_conversions() {
  check_type<edgemamba::cuda::F16, edgemamba::Float16>("float16");
  check_type<edgemamba::cuda::BF16, edgemamba::BFloat16>("bfloat16");
}
