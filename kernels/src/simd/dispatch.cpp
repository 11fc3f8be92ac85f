// Which instruction set runs: the best that this machine has, or the one that EDGEMAMBA_ISA names.
#include <cstdlib>
#include <cstring>

#include "simd/kernels.h"

namespace edgemamba {

namespace isa_scalar {
extern const Kernels kernels;
}
#if defined(__x86_64__)
namespace isa_avx2 {
extern const Kernels kernels;
}
namespace isa_avx512 {
extern const Kernels kernels;
}
#elif defined(__aarch64__)
namespace isa_neon {
extern const Kernels kernels;
}
#endif

namespace {

struct Table {
  const Kernels* runnable[3];
  int count = 0;
  char names[64] = "";

  void add(const Kernels& kernels) {
    if (count) std::strcat(names, ",");
    std::strcat(names, kernels.name);
    runnable[count++] = &kernels;
  }

  Table() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      add(isa_avx512::kernels);
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
      add(isa_avx2::kernels);
    }
#elif defined(__aarch64__)
    add(isa_neon::kernels);
#endif
    add(isa_scalar::kernels);
  }

  // A name that cannot run here is passed over: a forced instruction set is for tests, which look at em_isa().
  const Kernels& choose() const {
    const char* wanted = std::getenv("EDGEMAMBA_ISA");
    for (int i = 0; wanted != nullptr && i < count; ++i) {
      if (std::strcmp(wanted, runnable[i]->name) == 0) return *runnable[i];
    }
    return *runnable[0];
  }
};

const Table& table() {
  static const Table found;
  return found;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = table().choose();
  return chosen;
}

const char* kernels_list() { return table().names; }

}  // namespace edgemamba
