// Which TensorRT has loaded us. The plugin links no TensorRT library, so it must look.
#ifndef EDGEMAMBA_TRT_HOST_H
#define EDGEMAMBA_TRT_HOST_H

#include <stdint.h>

namespace edgemamba::trt {

// The interfaces that a plugin implements (IPluginV3, its three capabilities, IPluginCreatorV3One) have the same
// virtual tables in these majors; the harness walks them on the real libraries. IPluginRegistry, ILogger and
// ILoggerFinder do not, so nothing of those is called across majors.
constexpr int32_t kOldestMajor = 10, kNewestMajor = 11;

struct Host {
  int32_t major = 0;    // of the plugin ABI; 0: unknown. TensorRT-RTX 1.x has the ABI of 11.
  int32_t version = 0;  // as the library's getInferLibVersion() says it: 101601 is 10.16.1
  bool rtx = false;
};

// The TensorRT library that contains `object`'s virtual table; unknown (major 0) where that is not a TensorRT library.
Host host_of(const void* object);

// The plugin ABI's major of a library, by its version and its name. Where both are strange: 0.
Host read_host(const char* file, int32_t version);

}  // namespace edgemamba::trt

#endif  // EDGEMAMBA_TRT_HOST_H
