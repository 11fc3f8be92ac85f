// What the creator says of itself and what it makes of a node's attributes, well-formed and hostile.
#include <cstring>
#include <limits>

#include "check.h"
#include "sections.h"

using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;
using nvinfer1::TensorRTPhase;

namespace {

bool is(const nvinfer1::IVersionedInterface& object, const char* kind, int32_t major) {
  const nvinfer1::InterfaceInfo info = object.getInterfaceInfo();
  return std::strcmp(info.kind, kind) == 0 && info.major == major;
}

// createPlugin with one field; the made layer's delta_softplus, or -1 where it refused.
int32_t softplus_of(const Subject& subject, const PluginField& field) {
  const PluginFieldCollection fields = {1, &field};
  const Layer layer(subject.creator()->createPlugin("node", &fields, TensorRTPhase::kBUILD));
  if (!layer.plugin) return -1;
  const PluginFieldCollection* said = layer.runtime->getFieldsToSerialize();
  int32_t value = -2;
  if (said && said->nbFields == 2) std::memcpy(&value, said->fields[0].data, sizeof value);
  return value;
}

void refuses(const Subject& subject, const PluginField& field, const char* what, const char* message) {
  const bool refused = softplus_of(subject, field) == -1;
  const std::string said = subject.last_error();
  check(refused && said.find(message) != std::string::npos, "refuses %s: %s", what, said.c_str());
}

}  // namespace

void check_creator(const Subject& subject) {
  nvinfer1::IPluginCreatorV3One* creator = subject.creator();
  check(is(*creator, "PLUGIN CREATOR_V3ONE", 1), "the creator is a V3One creator");
  check(!std::strcmp(creator->getPluginName(), "SelectiveScan") && !std::strcmp(creator->getPluginVersion(), "1") &&
            !std::strcmp(creator->getPluginNamespace(), "edgemamba"),
        "creator of SelectiveScan, version 1, namespace edgemamba");
  const PluginFieldCollection* names = creator->getFieldNames();
  check(names && names->nbFields == 1 && !std::strcmp(names->fields[0].name, "delta_softplus") &&
            names->fields[0].type == PluginFieldType::kINT32,
        "one field, delta_softplus, int32: what the parser reads from the node");

  for (const TensorRTPhase phase : {TensorRTPhase::kBUILD, TensorRTPhase::kRUNTIME}) {
    const Layer layer = make_layer(subject, 0, phase);
    const bool whole = layer.plugin && layer.core && layer.build && layer.runtime;
    if (!check(whole, "a layer with three capabilities in phase %d", static_cast<int>(phase))) return;
    check(is(*layer.core, "PLUGIN_V3ONE_CORE", 1) && is(*layer.build, "PLUGIN_V3ONE_BUILD", 1) &&
              is(*layer.runtime, "PLUGIN_V3ONE_RUNTIME", 1),
          "core, build and runtime interfaces of version 1");
    check(!std::strcmp(layer.core->getPluginName(), "SelectiveScan") &&
              !std::strcmp(layer.core->getPluginVersion(), "1") &&
              !std::strcmp(layer.core->getPluginNamespace(), "edgemamba"),
          "the layer has its creator's name, version and namespace");
  }

  const PluginFieldCollection none = {0, nullptr};
  const Layer plain(creator->createPlugin(nullptr, &none, TensorRTPhase::kBUILD));
  check(plain.plugin != nullptr, "no fields: the operator's defaults");
  const Layer absent(creator->createPlugin("node", nullptr, TensorRTPhase::kBUILD));
  check(absent.plugin != nullptr, "no collection: the operator's defaults");

  const char* name = "delta_softplus";
  const int32_t zero = 0, one = 1, two[] = {1, 0}, vast = std::numeric_limits<int32_t>::min();
  const int64_t wide = 0, too_wide = int64_t{1} << 40;
  const float real = 1;
  check(softplus_of(subject, {name, &zero, PluginFieldType::kINT32, 1}) == 0, "int32 0 is kept");
  check(softplus_of(subject, {name, &one, PluginFieldType::kINT32, 1}) == 1, "int32 1 is kept");
  check(softplus_of(subject, {name, &wide, PluginFieldType::kINT64, 1}) == 0, "int64 0 is kept");
  unsigned char unaligned[8] = {};
  check(softplus_of(subject, {name, unaligned + 1, PluginFieldType::kINT32, 1}) == 0, "unaligned data is read");
  check(softplus_of(subject, {"groups", &one, PluginFieldType::kINT32, 1}) == 1, "an unknown field is ignored");
  refuses(subject, {name, &vast, PluginFieldType::kINT32, 1}, "a value that is no flag", "expected 0 or 1");
  refuses(subject, {name, &too_wide, PluginFieldType::kINT64, 1}, "one that int32 would cut", "1099511627776");
  refuses(subject, {name, &real, PluginFieldType::kFLOAT32, 1}, "a float", "expected an integer");
  refuses(subject, {name, "1", PluginFieldType::kCHAR, 1}, "text", "expected an integer");
  refuses(subject, {name, two, PluginFieldType::kINT32, 2}, "two values", "2 values");
  refuses(subject, {name, nullptr, PluginFieldType::kINT32, 1}, "no data", "0 values");
  refuses(subject, {name, &one, PluginFieldType::kINT32, -1}, "a negative length", "-1 values");
  refuses(subject, {name, &one, static_cast<PluginFieldType>(99), 1}, "a type of the future", "field type 99");
  refuses(subject, {nullptr, &one, PluginFieldType::kINT32, 1}, "a field without a name", "no name");
  const int64_t less = -1;
  refuses(subject, {"workspace_bytes", &less, PluginFieldType::kINT64, 1}, "bytes below none", "workspace_bytes: -1");
  const PluginField field(name, &one, PluginFieldType::kINT32, 1);
  const PluginFieldCollection negative = {-5, &field};
  const Layer odd(creator->createPlugin("node", &negative, TensorRTPhase::kBUILD));
  check(odd.plugin != nullptr, "a negative count is a count of none");
}
