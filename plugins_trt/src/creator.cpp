#include "creator.h"

#include <cstring>
#include <new>

#include "report.h"

namespace edgemamba::trt {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

// The parser hands an ONNX INT over as one INT32; engines and other callers may say INT64. Data need not be aligned.
bool read_flag(const PluginField& field, int32_t* value) noexcept {
  int64_t found = 0;
  if (field.data == nullptr || field.length != 1) {
    report(Severity::kERROR, "%s: %d values, expected one", kSoftplusField, field.data ? field.length : 0);
    return false;
  }
  if (field.type == PluginFieldType::kINT32) {
    int32_t narrow;
    std::memcpy(&narrow, field.data, sizeof narrow);
    found = narrow;
  } else if (field.type == PluginFieldType::kINT64) {
    std::memcpy(&found, field.data, sizeof found);
  } else {
    report(Severity::kERROR, "%s: field type %d, expected an integer", kSoftplusField, static_cast<int>(field.type));
    return false;
  }
  if (found != 0 && found != 1) {
    report(Severity::kERROR, "%s: %lld, expected 0 or 1", kSoftplusField, static_cast<long long>(found));
    return false;
  }
  *value = static_cast<int32_t>(found);
  return true;
}

}  // namespace

ScanCreator::ScanCreator() noexcept : field_(kSoftplusField, nullptr, PluginFieldType::kINT32, 1) {
  fields_.nbFields = 1;
  fields_.fields = &field_;
}

nvinfer1::IPluginV3* ScanCreator::createPlugin(const nvinfer1::AsciiChar* name,
                                               const nvinfer1::PluginFieldCollection* fields,
                                               nvinfer1::TensorRTPhase) noexcept {
  int32_t delta_softplus = 1;  // the operator's default
  const int32_t count = fields != nullptr && fields->fields != nullptr ? fields->nbFields : 0;
  for (int32_t i = 0; i < count; ++i) {
    const PluginField& field = fields->fields[i];
    if (field.name == nullptr) {
      report(Severity::kERROR, "%s: field %d has no name", name ? name : "", i);
      return nullptr;
    }
    if (std::strcmp(field.name, kSoftplusField) != 0) {
      report(Severity::kWARNING, "%s: field \"%.80s\" is not known and ignored", name ? name : "", field.name);
    } else if (!read_flag(field, &delta_softplus)) {
      return nullptr;
    }
  }
  auto* plugin = new (std::nothrow) ScanPlugin(delta_softplus);
  if (plugin == nullptr) report(Severity::kERROR, "%s: out of memory", name ? name : "");
  return plugin;
}

}  // namespace edgemamba::trt
