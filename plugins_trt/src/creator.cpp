#include "creator.h"

#include <cstring>
#include <limits>
#include <new>

#include "report.h"

namespace edgemamba::trt {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

// One integer from 0 to `most`. The parser hands an ONNX INT over as one INT32; engines and other callers may say
// INT64. The data need not be aligned.
bool read_integer(const PluginField& field, int64_t most, int64_t* value) noexcept {
  if (field.data == nullptr || field.length != 1) {
    report(Severity::kERROR, "%s: %d values, expected one", field.name, field.data ? field.length : 0);
    return false;
  }
  if (field.type == PluginFieldType::kINT32) {
    int32_t narrow;
    std::memcpy(&narrow, field.data, sizeof narrow);
    *value = narrow;
  } else if (field.type == PluginFieldType::kINT64) {
    std::memcpy(value, field.data, sizeof *value);
  } else {
    report(Severity::kERROR, "%s: field type %d, expected an integer", field.name, static_cast<int>(field.type));
    return false;
  }
  if (*value >= 0 && *value <= most) return true;
  report(Severity::kERROR, "%s: %lld, expected 0%s%lld", field.name, static_cast<long long>(*value),
         most == 1 ? " or " : " to ", static_cast<long long>(most));
  return false;
}

}  // namespace

ScanCreator::ScanCreator() noexcept : field_(kSoftplusField, nullptr, PluginFieldType::kINT32, 1) {
  fields_.nbFields = 1;
  fields_.fields = &field_;
}

nvinfer1::IPluginV3* ScanCreator::createPlugin(const nvinfer1::AsciiChar* name,
                                               const nvinfer1::PluginFieldCollection* fields,
                                               nvinfer1::TensorRTPhase) noexcept {
  Settings settings;
  const int32_t count = fields != nullptr && fields->fields != nullptr ? fields->nbFields : 0;
  for (int32_t i = 0; i < count; ++i) {
    const PluginField& field = fields->fields[i];
    if (field.name == nullptr) {
      report(Severity::kERROR, "%s: field %d has no name", name ? name : "", i);
      return nullptr;
    }
    int64_t value = 0;
    if (std::strcmp(field.name, kSoftplusField) == 0) {
      if (!read_integer(field, 1, &value)) return nullptr;
      settings.delta_softplus = static_cast<int32_t>(value);
    } else if (std::strcmp(field.name, kWorkspaceField) == 0) {
      if (!read_integer(field, std::numeric_limits<int64_t>::max(), &settings.workspace_bytes)) return nullptr;
    } else {
      report(Severity::kWARNING, "%s: field \"%.80s\" is not known and ignored", name ? name : "", field.name);
    }
  }
  auto* plugin = new (std::nothrow) ScanPlugin(settings);
  if (plugin == nullptr) report(Severity::kERROR, "%s: out of memory", name ? name : "");
  return plugin;
}

}  // namespace edgemamba::trt
