#include "report.h"

#include <NvInferVersion.h>
#include <pthread.h>

#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace edgemamba::trt {
namespace {

constexpr size_t kLineSize = 512;

// A pthread mutex and not std::mutex: its lock() may throw, and nothing here may.
pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
nvinfer1::ILoggerFinder* finder = nullptr;
Host host;
char last[kLineSize] = "";

class Locked {
 public:
  Locked() { pthread_mutex_lock(&mutex); }
  ~Locked() { pthread_mutex_unlock(&mutex); }
  Locked(const Locked&) = delete;
  Locked& operator=(const Locked&) = delete;
};

// ILogger and ILoggerFinder changed their virtual tables in 11.0: a call across majors lands in another function. An
// unknown host gave us an object of the headers that it was built with, in our own process image: the harness.
nvinfer1::ILogger* logger_of(nvinfer1::ILoggerFinder* given, const Host& from) {
  const bool same_abi = from.major == 0 || from.major == NV_TENSORRT_MAJOR;
  if (given == nullptr || !same_abi) return nullptr;
  try {
    return given->findLogger();  // not declared noexcept
  } catch (...) {
    return nullptr;
  }
}

}  // namespace

void set_finder(nvinfer1::ILoggerFinder* given) noexcept {
  const Host found = host_of(given);
  const Locked locked;
  finder = given;
  host = found;
}

bool host_is_supported() noexcept {
  Host found;
  {
    const Locked locked;
    found = host;
  }
  if (found.major == 0 || (found.major >= kOldestMajor && found.major <= kNewestMajor)) return true;
  report(
      Severity::kERROR,
      "this plugin serves TensorRT %d to %d (and TensorRT-RTX 1); it was loaded by version code %d: build it for that "
      "one with `python -m edgemamba.plugins_trt build`",
      kOldestMajor, kNewestMajor, found.version);
  return false;
}

void report(Severity severity, const char* format, ...) noexcept {
  char line[kLineSize];
  constexpr char kPrefix[] = "edgemamba SelectiveScan: ";
  constexpr size_t kSkip = sizeof kPrefix - 1;
  std::memcpy(line, kPrefix, sizeof kPrefix);
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(line + kSkip, sizeof line - kSkip, format, arguments);
  va_end(arguments);
  nvinfer1::ILoggerFinder* given;
  Host from;
  {
    const Locked locked;
    if (severity <= Severity::kERROR) std::snprintf(last, sizeof last, "%s", line + kSkip);
    given = finder;
    from = host;
  }
  nvinfer1::ILogger* logger = logger_of(given, from);
  if (logger != nullptr) {
    logger->log(severity, line);
  } else if (severity <= Severity::kWARNING) {
    std::fprintf(stderr, "%s\n", line);
  }
}

size_t last_error(char* text, size_t size) noexcept {
  const Locked locked;
  if (text != nullptr && size > 0) std::snprintf(text, size, "%s", last);
  return std::strlen(last);
}

}  // namespace edgemamba::trt
