// The nine tensors of a scan as TensorRT describes them.
#ifndef EDGEMAMBA_HARNESS_DESCRIPTIONS_H
#define EDGEMAMBA_HARNESS_DESCRIPTIONS_H

#include <NvInferRuntime.h>

#include <array>
#include <initializer_list>

// As in kernels/include/edgemamba/scan.h.
struct Extents {
  int64_t B = 2, P = 12, Gu = 1, G = 4, D = 6, N = 3, S = 12;
};

constexpr int32_t kInputCount = 8, kTensorCount = 9;
constexpr const char* kTensorNames[kTensorCount] = {"u", "delta", "A", "B", "C", "D", "delta_bias", "order", "y"};

nvinfer1::Dims dims(std::initializer_list<int64_t> extents);

// Inputs in the operator's order, then y.
using Descriptions = std::array<nvinfer1::PluginTensorDesc, kTensorCount>;
Descriptions describe(const Extents& extents, nvinfer1::DataType type);

// The same with B, P and S unknown, from `least` to `most`; the optimum is `usual`.
using Ranges = std::array<nvinfer1::DynamicPluginTensorDesc, kTensorCount>;
Ranges describe_range(const Extents& least, const Extents& usual, const Extents& most, nvinfer1::DataType type);

#endif  // EDGEMAMBA_HARNESS_DESCRIPTIONS_H
