// Where messages go: TensorRT's logger where its ABI is ours, and always a last error that can be asked for.
#ifndef EDGEMAMBA_TRT_REPORT_H
#define EDGEMAMBA_TRT_REPORT_H

#include <NvInferRuntime.h>

#include <stddef.h>

#include "host.h"

namespace edgemamba::trt {

using Severity = nvinfer1::ILogger::Severity;

// What TensorRT hands a plugin library when it loads it. Remembers the host as well.
void set_finder(nvinfer1::ILoggerFinder* finder) noexcept;

// False where the library that loaded us is of a major whose plugin ABI we do not know; says so.
bool host_is_supported() noexcept;

// printf-style; one line that starts with what it is about. Errors and worse become the last error. Without a logger,
// warnings and worse go to stderr.
__attribute__((format(printf, 2, 3))) void report(Severity severity, const char* format, ...) noexcept;

// Copies the last error (cut to fit, NUL-terminated) and returns its whole length; 0 where there was none.
size_t last_error(char* text, size_t size) noexcept;

}  // namespace edgemamba::trt

#endif  // EDGEMAMBA_TRT_REPORT_H
