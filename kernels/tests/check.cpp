#include "check.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <string>

namespace {

int failures = 0;

}  // namespace

void fail(const char* format, ...) {
  ++failures;
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputc('\n', stderr);
}

int run_section(int count, char** arguments, const std::vector<Section>& sections, const char* where) {
  const char* what = count == 2 ? arguments[1] : "";
  std::string names;
  for (const Section& section : sections) {
    if (std::strcmp(what, section.name) == 0) {
      section.run();
      std::printf("%s on %s: %s\n", what, where, failures ? "FAILED" : "ok");
      return failures ? 1 : 0;
    }
    names += (names.empty() ? "" : "|") + std::string(section.name);
  }
  std::fprintf(stderr, "usage: %s %s\n", arguments[0], names.c_str());
  return 2;
}
