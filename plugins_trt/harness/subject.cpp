#include "subject.h"

#include <dlfcn.h>

#include <cstring>

#include "check.h"

namespace {

constexpr char kName[] = "SelectiveScan", kVersion[] = "1", kNamespace[] = "edgemamba";

class Logger final : public nvinfer1::ILogger {
 public:
  void log(Severity, const nvinfer1::AsciiChar* text) noexcept override {
    ++lines;
    last = text;
  }
  int lines = 0;
  std::string last;
};

class Finder final : public nvinfer1::ILoggerFinder {
 public:
  nvinfer1::ILogger* findLogger() noexcept override { return &logger; }
  Logger logger;
};

Finder finder;  // outlives every plugin: the library keeps the address

template <typename Function>
Function symbol(void* library, const char* name) {
  return reinterpret_cast<Function>(dlsym(library, name));
}

}  // namespace

Subject::Subject(const std::string& plugin, const std::string& tensorrt) {
  // First, so that an error in the plugin's own dependencies is dlopen's and not the registry's.
  library_ = dlopen(plugin.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!check(library_ != nullptr, "the plugin library loads without any TensorRT library: %s",
             library_ ? plugin.c_str() : dlerror())) {
    return;
  }
  const auto build_info = symbol<const char* (*)()>(library_, "em_trt_build_info");
  check(build_info && std::strstr(build_info(), "SelectiveScan 1, TensorRT headers "), "build info: %s",
        build_info ? build_info() : "none");
  check(last_error().empty(), "no error yet");
  if (tensorrt.empty()) {
    open_directly();
  } else {
    open_registry(plugin, tensorrt);
  }
}

void Subject::open_registry(const std::string& plugin, const std::string& tensorrt) {
  void* host = dlopen(tensorrt.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (!check(host != nullptr, "%s", host ? tensorrt.c_str() : dlerror())) return;
  registry_ = edgemamba::trt::Registry::of(host, tensorrt.c_str());
  if (!check(static_cast<bool>(registry_), "plugin registry of version code %d, plugin ABI of TensorRT %d",
             registry_.host().version, registry_.host().major)) {
    return;
  }
  check(registry_.creator(kName, kVersion, kNamespace) == nullptr, "the creator is not there before it is loaded");
  handle_ = registry_.load_library(plugin.c_str());
  if (!check(handle_ != nullptr, "loadLibrary: %s", handle_ ? "loaded" : last_error().c_str())) return;
  int32_t count = 0;
  void* const* all = registry_.all_creators(&count);
  void* found = registry_.creator(kName, kVersion, kNamespace);
  bool listed = false;
  for (int32_t i = 0; i < count; ++i) listed = listed || all[i] == found;
  check(found != nullptr && listed, "getCreator(%s, %s, %s) finds it, and it is among all %d", kName, kVersion,
        kNamespace, count);
  check(registry_.creator(kName, "2", kNamespace) == nullptr, "another version is not found");
  check(registry_.creator(kName, kVersion, "") == nullptr, "nor the empty namespace: others' plugins cannot collide");
  check(registry_.creator(kName, kVersion, "other") == nullptr, "nor another namespace");
  check(registry_.load_library(plugin.c_str()) == nullptr, "a second loadLibrary changes nothing");
  creator_ = static_cast<nvinfer1::IPluginCreatorV3One*>(static_cast<nvinfer1::IPluginCreatorInterface*>(found));
}

void Subject::open_directly() {
  const auto set_finder = symbol<void (*)(nvinfer1::ILoggerFinder*)>(library_, "setLoggerFinder");
  const auto creators = symbol<nvinfer1::IPluginCreatorInterface* const* (*)(int32_t&)>(library_, "getCreators");
  if (!check(set_finder && creators, "exports setLoggerFinder and getCreators")) return;
  set_finder(&finder);
  int32_t count = 0;
  auto* const* list = creators(count);
  if (!check(count == 1 && list && list[0], "getCreators: one creator")) return;
  creator_ = static_cast<nvinfer1::IPluginCreatorV3One*>(list[0]);
  const nvinfer1::PluginFieldCollection unnamed = {1, nullptr};
  nvinfer1::PluginField no_data("delta_softplus", nullptr, nvinfer1::PluginFieldType::kINT32, 1);
  const nvinfer1::PluginFieldCollection bad = {1, &no_data};
  std::unique_ptr<nvinfer1::IPluginV3> refused(creator_->createPlugin("log", &bad, nvinfer1::TensorRTPhase::kBUILD));
  check(!refused && finder.logger.lines > 0 && finder.logger.last.find("delta_softplus") != std::string::npos,
        "the logger is told: %s", finder.logger.last.c_str());
  std::unique_ptr<nvinfer1::IPluginV3> empty(creator_->createPlugin("log", &unnamed, nvinfer1::TensorRTPhase::kBUILD));
  check(empty != nullptr, "a collection of no array is a collection of no fields");
}

Subject::~Subject() {
  if (!registry_ || handle_ == nullptr) return;
  registry_.deregister_library(handle_);
  check(registry_.creator(kName, kVersion, kNamespace) == nullptr, "deregisterLibrary takes the creator away");
}

std::string Subject::last_error() const {
  const auto function = symbol<size_t (*)(char*, size_t)>(library_, "em_trt_last_error");
  if (!function) return "em_trt_last_error is not exported";
  std::string text(function(nullptr, 0) + 1, '\0');
  function(&text[0], text.size());
  text.pop_back();
  return text;
}

Layer::Layer(nvinfer1::IPluginV3* made) : plugin(made) {
  if (!plugin) return;
  using Type = nvinfer1::PluginCapabilityType;
  core = static_cast<nvinfer1::IPluginV3OneCore*>(plugin->getCapabilityInterface(Type::kCORE));
  build = static_cast<nvinfer1::IPluginV3OneBuild*>(plugin->getCapabilityInterface(Type::kBUILD));
  runtime = static_cast<nvinfer1::IPluginV3OneRuntime*>(plugin->getCapabilityInterface(Type::kRUNTIME));
}

Layer make_layer(const Subject& subject, int32_t value, nvinfer1::TensorRTPhase phase) {
  const nvinfer1::PluginField field("delta_softplus", &value, nvinfer1::PluginFieldType::kINT32, 1);
  const nvinfer1::PluginFieldCollection fields = {1, &field};
  return Layer(subject.creator()->createPlugin("layer", &fields, phase));
}
