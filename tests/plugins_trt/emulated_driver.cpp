// Stands in for libcuda.so.1 on a machine without a GPU: device memory is host memory, and a launch runs the kernels'
// own code on the host (kernels/tests/cuda_emulation.cpp). Everything between TensorRT's call and the launch is real.
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

// Its run_launch is in an unnamed namespace: a driver gets kernels by name, not scans.
#include "tests/cuda_emulation.cpp"

void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::abort();
}

namespace {

constexpr int kAttributeMajor = 75, kAttributeMinor = 76, kAttributeMultiprocessors = 16;
int context;  // its address is the context

}  // namespace

#define DRIVER extern "C" __attribute__((visibility("default"))) int

DRIVER cuInit(unsigned) { return 0; }
DRIVER cuDriverGetVersion(int* version) { return *version = 13000, 0; }
DRIVER cuGetErrorName(int, const char** text) { return *text = "EMULATED", 0; }
DRIVER cuGetErrorString(int, const char** text) { return *text = "an error of the stand-in", 0; }
DRIVER cuDeviceGetCount(int* count) { return *count = 1, 0; }
DRIVER cuDeviceGet(int* device, int) { return *device = 0, 0; }
DRIVER cuDeviceGetName(char* name, int size, int) { return std::snprintf(name, size, "the stand-in"), 0; }
DRIVER cuDeviceGetAttribute(int* value, int attribute, int) {
  *value = attribute == kAttributeMajor ? 9 : attribute == kAttributeMinor ? 0 : 0;
  if (attribute == kAttributeMultiprocessors) *value = 132;
  return 0;
}
DRIVER cuDevicePrimaryCtxRetain(void** out, int) { return *out = &context, 0; }
DRIVER cuCtxSetCurrent(void*) { return 0; }
DRIVER cuCtxGetCurrent(void** out) { return *out = &context, 0; }
DRIVER cuCtxGetDevice(int* device) { return *device = 0, 0; }
DRIVER cuStreamCreate(void** stream, unsigned) { return *stream = &context, 0; }
DRIVER cuStreamSynchronize(void*) { return 0; }
DRIVER cuMemAlloc_v2(void** out, size_t bytes) {
  return (*out = std::aligned_alloc(512, (bytes + 511) / 512 * 512)) ? 0 : 2;
}
DRIVER cuMemFree_v2(void* memory) { return std::free(memory), 0; }
DRIVER cuMemcpyHtoD_v2(void* to, const void* from, size_t bytes) { return std::memcpy(to, from, bytes), 0; }
DRIVER cuMemcpyDtoH_v2(void* to, const void* from, size_t bytes) { return std::memcpy(to, from, bytes), 0; }
DRIVER cuMemsetD8Async(void* at, unsigned char value, size_t bytes, void*) { return std::memset(at, value, bytes), 0; }
DRIVER cuMemsetD32Async(unsigned* at, unsigned value, size_t words, void*) { return std::fill_n(at, words, value), 0; }

// A "function" is its name, which must be an entry of the PTX: the plugin takes the names from there.
DRIVER cuModuleLoadDataEx(void** module, const void* image, unsigned, int*, void**) {
  *module = const_cast<void*>(image);
  return std::strstr(static_cast<const char*>(image), ".version") ? 0 : 218;
}
DRIVER cuModuleUnload(void*) { return 0; }
DRIVER cuModuleGetFunction(void** function, void*, const char* name) { return *function = strdup(name), 0; }
DRIVER cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned, unsigned,
                      unsigned, void*, void** parameters, void**) {
  if (y != 1 || z != 1) fail("a grid of more than one dimension");
  const ScanArgs& args = *static_cast<const ScanArgs*>(parameters[0]);
  CudaLaunch launch = {};
  std::snprintf(launch.kernel, sizeof launch.kernel, "%s", static_cast<const char*>(function));
  launch.blocks = x;
  launch.threads = static_cast<int>(threads);
  Machine machine{std::mt19937(1), emulation::Block(1), {}};
  if (std::strstr(launch.kernel, "_bf16")) {
    run_launch<cuda::BF16>(args, launch, &machine);
  } else if (std::strstr(launch.kernel, "_f16")) {
    run_launch<cuda::F16>(args, launch, &machine);
  } else {
    run_launch<cuda::F32>(args, launch, &machine);
  }
  if (machine.block.races() != 0 || machine.block.unwritten() != 0) fail("%s: a race", launch.kernel);
  return 0;
}
