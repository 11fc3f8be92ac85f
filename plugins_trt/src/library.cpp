// What the shared library exports: TensorRT's two entry points for plugin libraries, and two functions of our own.
#include <NvInferRuntime.h>
#include <NvInferVersion.h>

#include "creator.h"
#include "report.h"

#if NV_TENSORRT_MAJOR < 10
#error "SelectiveScan is an IPluginV3: it needs the headers of TensorRT 10.0 or later"
#endif

#define EM_TRT_TEXT(x) #x
#define EM_TRT_STRING(x) EM_TRT_TEXT(x)
#define EM_TRT_EXPORT extern "C" __attribute__((visibility("default")))

// Called by IPluginRegistry::loadLibrary before getCreators.
EM_TRT_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { edgemamba::trt::set_finder(finder); }

// No creators where the library that asks is of a major that we were not written for: the registry then says that it
// loaded nothing, and ours is the line before.
EM_TRT_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static edgemamba::trt::ScanCreator creator;
  static nvinfer1::IPluginCreatorInterface* const list[] = {&creator};
  count = edgemamba::trt::host_is_supported() ? 1 : 0;
  return list;
}

// One line: the plugin's name and version, and the TensorRT headers that it was built with.
EM_TRT_EXPORT const char* em_trt_build_info(void) {
  return "edgemamba SelectiveScan 1, TensorRT headers " EM_TRT_STRING(NV_TENSORRT_MAJOR) "." EM_TRT_STRING(
      NV_TENSORRT_MINOR) "." EM_TRT_STRING(NV_TENSORRT_PATCH);
}

// Copies the last error's text (cut to `size`, NUL-terminated); returns its whole length, 0 where there was none.
EM_TRT_EXPORT size_t em_trt_last_error(char* text, size_t size) { return edgemamba::trt::last_error(text, size); }
