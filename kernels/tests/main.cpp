// scan_tests values|hostile|executor|fork: exit status 0, 1 (failures on stderr), or 77 where EDGEMAMBA_ISA names an
// instruction set that this machine cannot run.
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "check.h"
#include "edgemamba/scan.h"

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
  const char* wanted = std::getenv("EDGEMAMBA_ISA");
  if (wanted != nullptr && std::strcmp(wanted, em_isa()) != 0) {
    std::printf("%s cannot run here (%s)\n", wanted, em_isa_list());
    return 77;
  }
  const char* what = count == 2 ? arguments[1] : "";
  if (std::strcmp(what, "values") == 0) {
    test_values();
  } else if (std::strcmp(what, "hostile") == 0) {
    test_hostile();
  } else if (std::strcmp(what, "executor") == 0) {
    test_executor();
  } else if (std::strcmp(what, "fork") == 0) {
    test_fork();
  } else {
    std::fprintf(stderr, "usage: %s values|hostile|executor|fork\n", arguments[0]);
    return 2;
  }
  std::printf("%s on %s: %s\n", what, em_isa(), failures ? "FAILED" : "ok");
  return failures ? 1 : 0;
}
