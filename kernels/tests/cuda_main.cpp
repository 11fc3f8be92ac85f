// cuda_tests emulation|plan|api: exit status 0, or 1 with the failures on stderr. No GPU is used.
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "cuda_emulation.h"

static int failures = 0;

void fail(const char* format, ...) {
  ++failures;
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputc('\n', stderr);
}

int main(int count, char** arguments) {
  const char* what = count == 2 ? arguments[1] : "";
  if (std::strcmp(what, "emulation") == 0) {
    test_cuda_emulation();
  } else if (std::strcmp(what, "plan") == 0) {
    test_cuda_plan();
  } else if (std::strcmp(what, "api") == 0) {
    test_cuda_api();
  } else {
    std::fprintf(stderr, "usage: %s emulation|plan|api\n", arguments[0]);
    return 2;
  }
  std::printf("cuda %s: %s\n", what, failures ? "FAILED" : "ok");
  return failures ? 1 : 0;
}
