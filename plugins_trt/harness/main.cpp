// The conformance harness: walks a plugin library through everything that TensorRT does with one, on a CPU; with a GPU
// it also runs it.
//
//   harness PLUGIN.so [--tensorrt LIBRARY.so] [--case FILE]...
//
// LIBRARY.so is a TensorRT runtime (libnvinfer.so.N, or the small libnvinfer_dispatch.so.N from the package registry),
// whose real plugin registry then loads the plugin; without it the plugin's own entry points are called. Prints a line
// for each check and a closing count; exits with 1 where one failed.
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "check.h"
#include "sections.h"

namespace {

int passed = 0, failed = 0, skipped = 0;

}  // namespace

bool check(bool holds, const char* format, ...) {
  std::printf(holds ? "ok      " : "FAILED  ");
  va_list arguments;
  va_start(arguments, format);
  std::vprintf(format, arguments);
  va_end(arguments);
  std::printf("\n");
  std::fflush(stdout);  // the line before a crash must be seen
  ++(holds ? passed : failed);
  return holds;
}

void skip(const char* format, ...) {
  std::printf("skipped ");
  va_list arguments;
  va_start(arguments, format);
  std::vprintf(format, arguments);
  va_end(arguments);
  std::printf("\n");
  ++skipped;
}

int main(int count, char** arguments) {
  std::string plugin, tensorrt;
  std::vector<std::string> cases;
  for (int i = 1; i < count; ++i) {
    const bool has_value = i + 1 < count;
    if (!std::strcmp(arguments[i], "--tensorrt") && has_value) {
      tensorrt = arguments[++i];
    } else if (!std::strcmp(arguments[i], "--case") && has_value) {
      cases.emplace_back(arguments[++i]);
    } else if (plugin.empty() && arguments[i][0] != '-') {
      plugin = arguments[i];
    } else {
      plugin.clear();
      break;
    }
  }
  if (plugin.empty()) {
    std::fprintf(stderr, "usage: %s PLUGIN.so [--tensorrt LIBRARY.so] [--case FILE]...\n", arguments[0]);
    return 2;
  }
  {
    const Subject subject(plugin, tensorrt);
    if (subject.creator() != nullptr) {
      check_creator(subject);
      check_building(subject);
      check_running(subject);
      check_device(subject, cases);
    }
  }
  std::printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
  return failed == 0 && passed > 0 ? 0 : 1;
}
