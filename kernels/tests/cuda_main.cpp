// cuda_tests emulation|barriers|conversions|plan|api: as run_section() says. No GPU is used.
#include "cuda_emulation.h"

int main(int count, char** arguments) {
  return run_section(count, arguments,
                     {{"emulation", test_cuda_emulation},
                      {"barriers", test_cuda_barriers},
                      {"conversions", test_cuda_conversions},
                      {"plan", test_cuda_plan},
                      {"api", test_cuda_api}},
                     "the host");
}
