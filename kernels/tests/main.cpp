// scan_tests values|hostile|executor|fork: as run_section() says, or 77 where EDGEMAMBA_ISA names an instruction set
// that this machine cannot run.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "check.h"
#include "edgemamba/scan.h"

int main(int count, char** arguments) {
  const char* wanted = std::getenv("EDGEMAMBA_ISA");
  if (wanted != nullptr && std::strcmp(wanted, em_isa()) != 0) {
    std::printf("%s cannot run here (%s)\n", wanted, em_isa_list());
    return 77;
  }
  return run_section(
      count, arguments,
      {{"values", test_values}, {"hostile", test_hostile}, {"executor", test_executor}, {"fork", test_fork}}, em_isa());
}
