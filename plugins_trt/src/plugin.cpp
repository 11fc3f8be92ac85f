#include "plugin.h"

#include <algorithm>
#include <new>

#include "edgemamba/scan_cuda.h"
#include "report.h"
#include "workspace.h"

namespace edgemamba::trt {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

// What the builder times against each other; setTactic(0) is TensorRT's "nothing was chosen".
constexpr int32_t kTactics[] = {EM_CUDA_SEQUENTIAL, EM_CUDA_CHUNKED};
constexpr int32_t kTacticCount = 2;

// TensorRT reads any number but 0 as failure.
constexpr int32_t kDone = 0, kRefused = -1;

bool is_static(const Dims& dims) {
  if (dims.nbDims < 0) return false;
  for (int32_t i = 0; i < dims.nbDims; ++i) {
    if (dims.d[i] < 0) return false;
  }
  return true;
}

// The tensor at the shape that the profile optimises for, or at its only one. False where the builder gave neither.
bool at_optimum(const DynamicPluginTensorDesc& from, PluginTensorDesc* to) {
  *to = from.desc;
  if (is_static(from.desc.dims)) return true;
  if (from.opt.nbDims != from.desc.dims.nbDims || !is_static(from.opt)) return false;
  to->dims = from.opt;
  return true;
}

}  // namespace

ScanPlugin::ScanPlugin(const ScanPlugin& other) noexcept
    : nvinfer1::IPluginV3(other),
      nvinfer1::IPluginV3OneCore(other),
      nvinfer1::IPluginV3OneBuild(other),
      nvinfer1::IPluginV3OneRuntime(other),
      settings_(other.settings_),
      tactic_(other.tactic_) {}

nvinfer1::IPluginCapability* ScanPlugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* ScanPlugin::clone() noexcept {
  auto* copy = new (std::nothrow) ScanPlugin(*this);
  if (copy == nullptr) report(Severity::kERROR, "out of memory");
  return copy;
}

int32_t ScanPlugin::getOutputDataTypes(DataType* outputs, int32_t output_count, const DataType* inputs,
                                       int32_t input_count) const noexcept {
  if (!check_counts(input_count, output_count)) return kRefused;
  // A strongly typed network takes these types as they are, and says only that no format combination fits; a weakly
  // typed one may still convert, so this is a warning.
  if (!is_value_type(inputs[kU])) {
    report(Severity::kWARNING, "u: dtype %s, expected float32, float16 or bfloat16", type_name(inputs[kU]));
  } else {
    for (int32_t i = 0; i < kInputs; ++i) {
      const DataType expected = expected_type(i, inputs[kU]);
      if (inputs[i] == expected) continue;
      report(Severity::kWARNING, "%s: dtype %s, expected %s: a strongly typed network cannot be built with it",
             tensor_name(i), type_name(inputs[i]), type_name(expected));
    }
  }
  outputs[0] = inputs[kU];
  return kDone;
}

int32_t ScanPlugin::getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t input_count, const nvinfer1::DimsExprs*,
                                    int32_t, nvinfer1::DimsExprs* outputs, int32_t output_count,
                                    nvinfer1::IExprBuilder&) noexcept {
  if (!check_counts(input_count, output_count)) return kRefused;
  for (int32_t i = 0; i < kInputs; ++i) {
    if (inputs[i].nbDims == tensor_rank(i)) continue;
    report(Severity::kERROR, "%s: rank %d, expected %d", tensor_name(i), inputs[i].nbDims, tensor_rank(i));
    return kRefused;
  }
  // u is (B, P, Gu, D), y is (B, P, D).
  outputs[0].nbDims = 3;
  outputs[0].d[0] = inputs[kU].d[0];
  outputs[0].d[1] = inputs[kU].d[1];
  outputs[0].d[2] = inputs[kU].d[3];
  return kDone;
}

bool ScanPlugin::supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors,
                                           int32_t input_count, int32_t output_count) noexcept {
  if (input_count != kInputs || output_count != kOutputs || position < 0 || position >= kTensors) return false;
  const PluginTensorDesc& tensor = tensors[position].desc;
  if (tensor.format != nvinfer1::TensorFormat::kLINEAR) return false;
  return position == kU ? is_value_type(tensor.type) : tensor.type == expected_type(position, tensors[kU].desc.type);
}

int32_t ScanPlugin::configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t input_count,
                                    const DynamicPluginTensorDesc* outputs, int32_t output_count) noexcept {
  if (!check_counts(input_count, output_count)) return kRefused;
  // The optimum is one shape that the network really takes. The bounds of inner tensors need not be: TensorRT may find
  // them one by one.
  PluginTensorDesc in[kInputs], out[kOutputs];
  bool known = at_optimum(outputs[0], &out[0]);
  for (int32_t i = 0; i < kInputs; ++i) known = at_optimum(inputs[i], &in[i]) && known;
  if (known && !Call(in, out, nullptr, nullptr, settings_.delta_softplus).valid()) return kRefused;
  // One layer may be configured for several profiles; which of them a call belongs to is not said.
  const auto bytes = static_cast<int64_t>(workspace_for(inputs));
  settings_.workspace_bytes = settings_.workspace_bytes ? std::min(settings_.workspace_bytes, bytes) : bytes;
  return kDone;
}

size_t ScanPlugin::getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t input_count,
                                    const DynamicPluginTensorDesc*, int32_t) const noexcept {
  return input_count == kInputs ? workspace_for(inputs) : 0;
}

int32_t ScanPlugin::getNbTactics() noexcept { return kTacticCount; }

int32_t ScanPlugin::getValidTactics(int32_t* tactics, int32_t count) noexcept {
  if (tactics == nullptr || count != kTacticCount) return kRefused;
  for (int32_t i = 0; i < kTacticCount; ++i) tactics[i] = kTactics[i];
  return kDone;
}

// TensorRT adds shapes and formats; what else changes the time is ours to say. Raise the number with the kernels.
const char* ScanPlugin::getTimingCacheID() noexcept {
  return settings_.delta_softplus ? "edgemamba.SelectiveScan.1.softplus" : "edgemamba.SelectiveScan.1.plain";
}

int32_t ScanPlugin::setTactic(int32_t tactic) noexcept {
  if (tactic != EM_CUDA_AUTO && tactic != EM_CUDA_SEQUENTIAL && tactic != EM_CUDA_CHUNKED) {
    report(Severity::kERROR, "tactic %d is not known: the engine was built with another version of this plugin",
           tactic);
    return kRefused;
  }
  tactic_ = tactic;
  return kDone;
}

int32_t ScanPlugin::onShapeChange(const PluginTensorDesc* inputs, int32_t input_count, const PluginTensorDesc* outputs,
                                  int32_t output_count) noexcept {
  if (!check_counts(input_count, output_count)) return kRefused;
  return Call(inputs, outputs, nullptr, nullptr, settings_.delta_softplus).valid() ? kDone : kRefused;
}

int32_t ScanPlugin::enqueue(const PluginTensorDesc* inputs, const PluginTensorDesc* outputs,
                            const void* const* addresses, void* const* results, void* workspace,
                            cudaStream_t stream) noexcept {
  if (inputs == nullptr || outputs == nullptr || addresses == nullptr || results == nullptr) return kRefused;
  const Call call(inputs, outputs, addresses, results, settings_.delta_softplus);
  const size_t bytes = usable_workspace(inputs, tactic_, static_cast<size_t>(settings_.workspace_bytes));
  char message[256];
  const auto status =
      em_cuda_selective_scan(call.inputs(), call.output(), workspace, bytes, tactic_, stream, message, sizeof message);
  if (status == EM_OK) return kDone;
  report(Severity::kERROR, "%s", message);
  return kRefused;
}

nvinfer1::IPluginV3* ScanPlugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
  // Loading the device code now keeps it out of the first enqueue, which may be inside a graph capture. Where it cannot
  // be loaded, enqueue says why.
  em_cuda_prepare(nullptr, 0);
  return clone();
}

const nvinfer1::PluginFieldCollection* ScanPlugin::getFieldsToSerialize() noexcept {
  field_[0] = nvinfer1::PluginField(kSoftplusField, &settings_.delta_softplus, nvinfer1::PluginFieldType::kINT32, 1);
  field_[1] = nvinfer1::PluginField(kWorkspaceField, &settings_.workspace_bytes, nvinfer1::PluginFieldType::kINT64, 1);
  fields_.nbFields = 2;
  fields_.fields = field_;
  return &fields_;
}

}  // namespace edgemamba::trt
