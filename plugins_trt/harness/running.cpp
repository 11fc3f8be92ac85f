// What an engine asks: fields into the file and back, clones, execution contexts, shapes as they change.
#include <cstring>
#include <functional>
#include <string>

#include "check.h"
#include "descriptions.h"
#include "fields.h"
#include "sections.h"

using nvinfer1::DataType;
using nvinfer1::TensorRTPhase;

namespace {

class Context final : public nvinfer1::IPluginResourceContext {
 public:
  nvinfer1::IGpuAllocator* getGpuAllocator() const noexcept override { return nullptr; }
  nvinfer1::IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
};

void check_copies(const Subject& subject) {
  for (const int32_t value : {0, 1}) {
    Layer built = make_layer(subject, value, TensorRTPhase::kBUILD);
    const Ranges range = describe_range({}, {}, {}, DataType::kFLOAT);
    built.build->configurePlugin(range.data(), kInputCount, &range[8], 1);
    const Stored stored(built.runtime->getFieldsToSerialize());
    built.plugin.reset();
    const Layer read(subject.creator()->createPlugin("layer", stored.collection(), TensorRTPhase::kRUNTIME));
    check(read.plugin && Stored(read.runtime->getFieldsToSerialize()) == stored,
          "delta_softplus = %d and the workspace survive the way into an engine and back", value);
    Layer original(subject.creator()->createPlugin("layer", stored.collection(), TensorRTPhase::kBUILD));
    original.runtime->getFieldsToSerialize();
    const Layer copy(original.plugin->clone());
    original.plugin.reset();
    check(copy.plugin && Stored(copy.runtime->getFieldsToSerialize()) == stored, "and a clone outlives its original");
  }
}

// The plugin must refuse, and its message must start with `start`.
void refuses(const Subject& subject, const Layer& layer, const Descriptions& tensors, const char* start) {
  const bool refused = layer.runtime->onShapeChange(tensors.data(), kInputCount, &tensors[8], 1) != 0;
  const std::string said = subject.last_error();
  check(refused && said.compare(0, std::strlen(start), start) == 0, "refuses %s", said.c_str());
}

void check_shapes(const Subject& subject, const Layer& layer) {
  const auto takes = [&](const Extents& extents, DataType type, const char* what) {
    const Descriptions good = describe(extents, type);
    check(layer.runtime->onShapeChange(good.data(), kInputCount, &good[8], 1) == 0, "takes %s", what);
  };
  takes({}, DataType::kFLOAT, "float32");
  takes({}, DataType::kHALF, "float16");
  takes({}, DataType::kBF16, "bfloat16");
  takes({2, 12, 4, 4, 6, 3, 5}, DataType::kFLOAT,
        "values of each direction's own, and orders that visit some positions");
  takes({64, 3136, 1, 4, 192, 16, 3136}, DataType::kHALF, "VMamba-T's first stage");
  takes({1, 1, 1, 1, 1, 1, 1}, DataType::kFLOAT, "one of everything");
  takes({1, 7, 1, 1, 9, 64, 7}, DataType::kFLOAT, "64 states");

  const Descriptions good = describe({}, DataType::kFLOAT);
  const auto with = [&](size_t tensor, const std::function<void(nvinfer1::PluginTensorDesc&)>& change) {
    Descriptions changed = good;
    change(changed[tensor]);
    return changed;
  };
  for (size_t i = 0; i < kTensorCount; ++i) {
    const std::string start = std::string(kTensorNames[i]) + ": ";
    refuses(subject, layer, with(i, [](auto& t) { t.dims.nbDims -= 1; }), (start + "rank").c_str());
    refuses(subject, layer, with(i, [](auto& t) { t.dims.nbDims = -1; }), (start + "rank").c_str());
    refuses(subject, layer, with(i, [](auto& t) { t.type = DataType::kINT8; }), (start + "dtype").c_str());
    refuses(subject, layer, with(i, [](auto& t) { t.dims.d[0] = -1; }), start.c_str());
    if (i != 1) refuses(subject, layer, with(i, [](auto& t) { t.dims.d[0] += 1; }), (start + "shape").c_str());
  }
  refuses(subject, layer, describe({2, 12, 3, 4, 6, 3, 12}, DataType::kFLOAT), "u: 3 directions");
  refuses(subject, layer, describe({2, 12, 1, 4, 6, 3, 13}, DataType::kFLOAT), "order: 13 steps");
  refuses(subject, layer, describe({2, 12, 1, 4, 6, 4096, 12}, DataType::kFLOAT), "A: ");
  check(layer.runtime->onShapeChange(good.data(), 7, &good[8], 1) != 0, "refuses seven inputs");
  check(layer.runtime->onShapeChange(good.data(), 8, &good[8], 2) != 0, "refuses two outputs");
  takes({}, DataType::kFLOAT, "a good shape after all that");
}

}  // namespace

void check_running(const Subject& subject) {
  check_copies(subject);
  Layer made = make_layer(subject, 1, TensorRTPhase::kRUNTIME);
  Context context;
  const Layer attached(made.runtime->attachToContext(&context));
  check(attached.plugin && attached.plugin != made.plugin, "attachToContext makes a layer of its own");
  made.plugin.reset();
  check_shapes(subject, attached);
  const Layer unattached = make_layer(subject, 1, TensorRTPhase::kRUNTIME);
  const Layer nowhere(unattached.runtime->attachToContext(nullptr));
  check(nowhere.plugin != nullptr, "a null context is not followed");
}
