// The SelectiveScan layer of a TensorRT network.
#ifndef EDGEMAMBA_TRT_PLUGIN_H
#define EDGEMAMBA_TRT_PLUGIN_H

#include <NvInferRuntime.h>

#include "shapes.h"

namespace edgemamba::trt {

// How the node is found: by the ONNX parser (op type, and the node's attributes plugin_version and plugin_namespace;
// runtime/edgemamba/runtime/operator.py writes them) and by an engine file.
constexpr char kName[] = "SelectiveScan";
constexpr char kVersion[] = "1";
constexpr char kNamespace[] = "edgemamba";
constexpr char kSoftplusField[] = "delta_softplus";
constexpr char kWorkspaceField[] = "workspace_bytes";  // in engine files only

// What a layer is; also what an engine file keeps of it.
struct Settings {
  int32_t delta_softplus = 1;
  int64_t workspace_bytes = 0;  // see workspace.h; 0: not configured yet
};

// Everything that the builder and the runtime ask is answered from plain members: no call allocates, none throws.
class ScanPlugin final : public nvinfer1::IPluginV3,
                         public nvinfer1::IPluginV3OneCore,
                         public nvinfer1::IPluginV3OneBuild,
                         public nvinfer1::IPluginV3OneRuntime {
 public:
  explicit ScanPlugin(const Settings& settings) noexcept : settings_(settings) {}

  // IPluginV3
  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  // IPluginV3OneCore
  const nvinfer1::AsciiChar* getPluginName() const noexcept override { return kName; }
  const nvinfer1::AsciiChar* getPluginVersion() const noexcept override { return kVersion; }
  const nvinfer1::AsciiChar* getPluginNamespace() const noexcept override { return kNamespace; }

  // IPluginV3OneBuild
  int32_t getNbOutputs() const noexcept override { return kOutputs; }
  int32_t getOutputDataTypes(nvinfer1::DataType* outputs, int32_t output_count, const nvinfer1::DataType* inputs,
                             int32_t input_count) const noexcept override;
  int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t input_count, const nvinfer1::DimsExprs*, int32_t,
                          nvinfer1::DimsExprs* outputs, int32_t output_count,
                          nvinfer1::IExprBuilder&) noexcept override;
  bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors,
                                 int32_t input_count, int32_t output_count) noexcept override;
  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t input_count,
                          const nvinfer1::DynamicPluginTensorDesc* outputs, int32_t output_count) noexcept override;
  size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t input_count,
                          const nvinfer1::DynamicPluginTensorDesc* outputs,
                          int32_t output_count) const noexcept override;
  int32_t getNbTactics() noexcept override;
  int32_t getValidTactics(int32_t* tactics, int32_t count) noexcept override;
  const char* getTimingCacheID() noexcept override;
  int32_t getFormatCombinationLimit() noexcept override { return 3; }  // float32, float16, bfloat16

  // IPluginV3OneRuntime
  int32_t setTactic(int32_t tactic) noexcept override;
  int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t input_count,
                        const nvinfer1::PluginTensorDesc* outputs, int32_t output_count) noexcept override;
  int32_t enqueue(const nvinfer1::PluginTensorDesc* inputs, const nvinfer1::PluginTensorDesc* outputs,
                  const void* const* addresses, void* const* results, void* workspace,
                  cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

 private:
  // Copies what the layer is, not the lists that getFieldsToSerialize() points to.
  ScanPlugin(const ScanPlugin& other) noexcept;

  Settings settings_;
  int32_t tactic_ = 0;
  nvinfer1::PluginField field_[2];
  nvinfer1::PluginFieldCollection fields_{};
};

}  // namespace edgemamba::trt

#endif  // EDGEMAMBA_TRT_PLUGIN_H
