#include "shapes.h"

#include "cuda_arguments.h"
#include "report.h"

namespace edgemamba::trt {
namespace {

using nvinfer1::DataType;

struct Tensor {
  const char* name;
  int32_t rank;
};
constexpr Tensor kTensor[kTensors] = {{"u", 4}, {"delta", 4},      {"A", 3},     {"B", 4}, {"C", 4},
                                      {"D", 2}, {"delta_bias", 2}, {"order", 2}, {"y", 3}};

// Stands for the addresses that are not there when shapes alone are validated: the kernels' check wants one for every
// tensor and follows none.
void* const kNowhere = reinterpret_cast<void*>(uintptr_t{16});

em_tensor view(const nvinfer1::PluginTensorDesc& desc, const void* address) {
  // Dims::d is int64_t[8], laid out as the C ABI wants extents; a scalar has rank 0, an unknown rank is -1.
  return {const_cast<void*>(address), desc.dims.d, desc.dims.nbDims, em_dtype_of(desc.type)};
}

}  // namespace

const char* tensor_name(int32_t position) { return kTensor[position].name; }
int32_t tensor_rank(int32_t position) { return kTensor[position].rank; }

const char* type_name(DataType type) {
  switch (type) {
    case DataType::kFLOAT: return "float32";
    case DataType::kHALF: return "float16";
    case DataType::kBF16: return "bfloat16";
    case DataType::kINT32: return "int32";
    case DataType::kINT64: return "int64";
    case DataType::kINT8: return "int8";
    case DataType::kBOOL: return "bool";
    default: return "another type";
  }
}

bool is_value_type(DataType type) {
  return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
}

DataType expected_type(int32_t position, DataType value_type) {
  switch (position) {
    case kA:
    case kD:
    case kDeltaBias: return DataType::kFLOAT;
    case kOrder: return DataType::kINT32;
    default: return value_type;
  }
}

bool check_counts(int32_t inputs, int32_t outputs) noexcept {
  if (inputs == kInputs && outputs == kOutputs) return true;
  report(Severity::kERROR, "%d inputs and %d outputs, expected 8 (u, delta, A, B, C, D, delta_bias, order) and 1",
         inputs, outputs);
  return false;
}

int32_t em_dtype_of(DataType type) noexcept {
  switch (type) {
    case DataType::kFLOAT: return EM_F32;
    case DataType::kHALF: return EM_F16;
    case DataType::kBF16: return EM_BF16;
    case DataType::kINT32: return EM_I32;
    default: return 0;
  }
}

Call::Call(const nvinfer1::PluginTensorDesc* inputs, const nvinfer1::PluginTensorDesc* outputs,
           const void* const* addresses, void* const* results, int32_t delta_softplus) noexcept {
  const auto input = [&](Input i) { return view(inputs[i], addresses ? addresses[i] : kNowhere); };
  inputs_ = {input(kU), input(kDelta),     input(kA),     input(kB),     input(kC),
             input(kD), input(kDeltaBias), input(kOrder), delta_softplus};
  output_ = view(outputs[0], results ? results[0] : kNowhere);
}

bool Call::valid() const noexcept {
  char text[256];
  const Message message(text, sizeof text);
  try {
    Problem problem;
    const char* why = nullptr;
    if (read_device_inputs(&inputs_, &problem, message) && check_output(&output_, "y", problem, message)) {
      if (cuda_supports(cuda_shape(problem), &why)) return true;
      message.set("%s", why);
    }
  } catch (...) {  // the kernels may allocate
    message.set("out of memory");
  }
  report(Severity::kERROR, "%s", text);
  return false;
}

}  // namespace edgemamba::trt
