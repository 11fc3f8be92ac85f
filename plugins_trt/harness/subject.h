// The plugin library under test, and the creator that came out of it by one of two ways: a TensorRT library's registry,
// or the library's own entry points.
#ifndef EDGEMAMBA_HARNESS_SUBJECT_H
#define EDGEMAMBA_HARNESS_SUBJECT_H

#include <NvInferRuntime.h>

#include <memory>
#include <string>

#include "registry.h"

class Subject {
 public:
  // `tensorrt`: path of a TensorRT library, or empty. Checks what it does; creator() is null where that failed.
  Subject(const std::string& plugin, const std::string& tensorrt);
  // Deregisters, and checks that the creator is gone.
  ~Subject();
  Subject(const Subject&) = delete;
  Subject& operator=(const Subject&) = delete;

  nvinfer1::IPluginCreatorV3One* creator() const { return creator_; }
  // The plugin's last error.
  std::string last_error() const;

 private:
  void open_registry(const std::string& plugin, const std::string& tensorrt);
  void open_directly();

  void* library_ = nullptr;
  edgemamba::trt::Registry registry_;
  void* handle_ = nullptr;
  nvinfer1::IPluginCreatorV3One* creator_ = nullptr;
};

// A plugin and its three capabilities.
struct Layer {
  explicit Layer(nvinfer1::IPluginV3* made);
  std::unique_ptr<nvinfer1::IPluginV3> plugin;
  nvinfer1::IPluginV3OneCore* core = nullptr;
  nvinfer1::IPluginV3OneBuild* build = nullptr;
  nvinfer1::IPluginV3OneRuntime* runtime = nullptr;
};

// The layer of a node with delta_softplus = `value`, as the parser makes it.
Layer make_layer(const Subject& subject, int32_t value, nvinfer1::TensorRTPhase phase);

#endif  // EDGEMAMBA_HARNESS_SUBJECT_H
