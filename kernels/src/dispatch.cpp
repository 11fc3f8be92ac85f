#include "dispatch.h"

#include <stdlib.h>
#include <string.h>

#include <string>

namespace edgemamba {

#if defined(__x86_64__)
namespace isa_x86_64_v4 {
extern const Kernels kernels;
}
namespace isa_x86_64_v3 {
extern const Kernels kernels;
}
#elif defined(__aarch64__)
namespace isa_neon {
extern const Kernels kernels;
}
#endif
namespace isa_scalar {
extern const Kernels kernels;
}

namespace {

struct Candidate {
  const Kernels* kernels;
  bool usable;
};

// Best first.
struct Candidates {
  Candidate list[3];
  int count = 0;

  Candidates() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    list[count++] = {&isa_x86_64_v4::kernels, v4};
    list[count++] = {&isa_x86_64_v3::kernels, v3};
#elif defined(__aarch64__)
    list[count++] = {&isa_neon::kernels, true};
#endif
    list[count++] = {&isa_scalar::kernels, true};
  }

  const Kernels& best() const {
    const char* wanted = getenv("EDGEMAMBA_ISA");
    const Kernels* first = nullptr;
    for (int i = 0; i < count; ++i) {
      if (!list[i].usable) continue;
      if (first == nullptr) first = list[i].kernels;
      if (wanted != nullptr && strcmp(wanted, list[i].kernels->name) == 0) return *list[i].kernels;
    }
    return *first;
  }

  std::string names() const {
    std::string joined;
    for (int i = 0; i < count; ++i) {
      if (!list[i].usable) continue;
      if (!joined.empty()) joined += ',';
      joined += list[i].kernels->name;
    }
    return joined;
  }
};

const Candidates& candidates() {
  static const Candidates found;
  return found;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = candidates().best();
  return chosen;
}

const char* isa_list() {
  static const std::string names = candidates().names();
  return names.c_str();
}

}  // namespace edgemamba
