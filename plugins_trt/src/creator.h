// Makes SelectiveScan layers from the node's attributes or from an engine's fields.
#ifndef EDGEMAMBA_TRT_CREATOR_H
#define EDGEMAMBA_TRT_CREATOR_H

#include <NvInferRuntime.h>

#include "plugin.h"

namespace edgemamba::trt {

class ScanCreator final : public nvinfer1::IPluginCreatorV3One {
 public:
  ScanCreator() noexcept;
  nvinfer1::IPluginV3* createPlugin(const nvinfer1::AsciiChar* name, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &fields_; }
  const nvinfer1::AsciiChar* getPluginName() const noexcept override { return kName; }
  const nvinfer1::AsciiChar* getPluginVersion() const noexcept override { return kVersion; }
  const nvinfer1::AsciiChar* getPluginNamespace() const noexcept override { return kNamespace; }

 private:
  nvinfer1::PluginField field_;
  nvinfer1::PluginFieldCollection fields_{};
};

}  // namespace edgemamba::trt

#endif  // EDGEMAMBA_TRT_CREATOR_H
