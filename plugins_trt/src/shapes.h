// TensorRT's descriptions of tensors in the terms of the kernels' C ABI, and the kernels' own validation of them.
#ifndef EDGEMAMBA_TRT_SHAPES_H
#define EDGEMAMBA_TRT_SHAPES_H

#include <NvInferRuntime.h>

#include "edgemamba/scan.h"

namespace edgemamba::trt {

// The operator's inputs in their order (kernels/include/edgemamba/scan.h).
enum Input : int32_t { kU, kDelta, kA, kB, kC, kD, kDeltaBias, kOrder, kInputs };
constexpr int32_t kOutputs = 1;
constexpr int32_t kTensors = kInputs + kOutputs;  // as TensorRT numbers them in format combinations: inputs, outputs

const char* tensor_name(int32_t position);
int32_t tensor_rank(int32_t position);

// A dtype's name for messages, and whether T may be it.
const char* type_name(nvinfer1::DataType type);
bool is_value_type(nvinfer1::DataType type);
// What the tensor at `position` must be, where u is `value_type`.
nvinfer1::DataType expected_type(int32_t position, nvinfer1::DataType value_type);

// True where there are eight inputs and one output; else reports.
bool check_counts(int32_t inputs, int32_t outputs) noexcept;

// One call of the scan. Refers to the extents of the descriptions that it was made from.
class Call {
 public:
  // Addresses may be null: then shapes and types can be validated, and nothing else.
  Call(const nvinfer1::PluginTensorDesc* inputs, const nvinfer1::PluginTensorDesc* outputs,
       const void* const* addresses, void* const* results, int32_t delta_softplus) noexcept;

  // The kernels' validation of everything but the order's contents, which only the device sees; reports what it says.
  bool valid() const noexcept;

  const em_scan_inputs* inputs() const { return &inputs_; }
  const em_tensor* output() const { return &output_; }

 private:
  em_scan_inputs inputs_;
  em_tensor output_;
};

// enum em_dtype; 0 where the contract has no such type.
int32_t em_dtype_of(nvinfer1::DataType type) noexcept;

}  // namespace edgemamba::trt

#endif  // EDGEMAMBA_TRT_SHAPES_H
