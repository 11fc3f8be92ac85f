#include "cuda_driver.h"

#include <cstdio>
#include <mutex>

#include "edgemamba/scan_cuda.h"

#if __has_include(<dlfcn.h>)
#include <dlfcn.h>
#endif

namespace edgemamba {
namespace {

constexpr const char* kLibrary = "libcuda.so.1";
constexpr int kAttributeMajor = 75, kAttributeMinor = 76;

struct Loaded {
  CudaDriver driver = {};
  char why[256] = "";  // empty: usable
};

#if __has_include(<dlfcn.h>)
template <typename Function>
bool find(void* library, const char* name, Function* function) {
  void* const address = dlsym(library, name);
  *function = reinterpret_cast<Function>(address);
  return address != nullptr;
}

// The name of the first function that is missing, or nullptr.
const char* find_all(void* library, CudaDriver* d) {
  find(library, "cuCtxGetId", &d->context_id);
#define EM_NEED(name, slot) \
  if (!find(library, name, &d->slot)) return name
  EM_NEED("cuInit", init);
  EM_NEED("cuDriverGetVersion", driver_version);
  EM_NEED("cuGetErrorName", error_name);
  EM_NEED("cuGetErrorString", error_string);
  EM_NEED("cuDeviceGetCount", device_count);
  EM_NEED("cuDeviceGet", device_get);
  EM_NEED("cuDeviceGetAttribute", device_attribute);
  EM_NEED("cuCtxGetCurrent", current_context);
  EM_NEED("cuCtxGetDevice", current_device);
  EM_NEED("cuModuleLoadDataEx", module_load);
  EM_NEED("cuModuleUnload", module_unload);
  EM_NEED("cuModuleGetFunction", module_function);
  EM_NEED("cuLaunchKernel", launch);
  EM_NEED("cuMemsetD8Async", memset8);
  EM_NEED("cuMemsetD32Async", memset32);
#undef EM_NEED
  return nullptr;
}

void load(Loaded* loaded) {
  // Never closed: the driver stays for the life of the process.
  void* const library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* const error = dlerror();
    std::snprintf(loaded->why, sizeof loaded->why, "CUDA: no NVIDIA driver: %s",
                  error != nullptr ? error : "libcuda.so.1 cannot be loaded");
    return;
  }
  const char* const missing = find_all(library, &loaded->driver);
  if (missing != nullptr) {
    std::snprintf(loaded->why, sizeof loaded->why, "CUDA: %s has no %s: update the NVIDIA driver", kLibrary, missing);
    return;
  }
  const CuResult result = loaded->driver.init(0);
  if (result != 0) {
    const char* text = nullptr;
    loaded->driver.error_string(result, &text);
    std::snprintf(loaded->why, sizeof loaded->why, "CUDA: the driver does not start: %s (%d)",
                  text != nullptr ? text : "unknown error", result);
  }
}
#else
void load(Loaded* loaded) {
  std::snprintf(loaded->why, sizeof loaded->why, "CUDA: not supported on this operating system");
}
#endif

}  // namespace

const CudaDriver* cuda_driver(const Message& message) {
  static Loaded loaded;
  static std::once_flag once;
  std::call_once(once, load, &loaded);
  if (loaded.why[0] == '\0') return &loaded.driver;
  message.set("%s", loaded.why);
  return nullptr;
}

int cuda_status(const CudaDriver& driver, CuResult result, const char* what, const Message& message) {
  if (result == 0) return EM_OK;
  const char *name = nullptr, *text = nullptr;
  driver.error_name(result, &name);
  driver.error_string(result, &text);
  message.set("CUDA: %s: %s (%s)", what, text != nullptr ? text : "unknown error", name != nullptr ? name : "?");
  return EM_CUDA_ERROR;
}

int cuda_capability(const CudaDriver& driver, CuDevice device) {
  int major = 0, minor = 0;
  if (driver.device_attribute(&major, kAttributeMajor, device) != 0) return 0;
  if (driver.device_attribute(&minor, kAttributeMinor, device) != 0) return 0;
  return 10 * major + minor;
}

}  // namespace edgemamba
