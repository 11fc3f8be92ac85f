#include "workspace.h"

#include <algorithm>

#include "edgemamba/scan_cuda.h"

namespace edgemamba::trt {
namespace {

// Of the largest GPUs there are. An engine may run on another GPU than it was built on, or be built on none; a smaller
// one uses less than it is granted.
constexpr int32_t kMultiprocessors = 192;

struct Extents {
  int64_t batch, positions, directions, channels, states, steps;
  int32_t dtype;
};

Extents extents_of(const nvinfer1::Dims& delta, const nvinfer1::Dims& A, const nvinfer1::Dims& order,
                   nvinfer1::DataType type) {
  const auto extent = [](const nvinfer1::Dims& dims, int32_t i, int32_t rank) {
    return dims.nbDims == rank ? dims.d[i] : int64_t{-1};
  };
  return {extent(delta, 0, 4), extent(delta, 1, 4), extent(delta, 2, 4), extent(delta, 3, 4),
          extent(A, 2, 3),     extent(order, 1, 2), em_dtype_of(type)};
}

// 0 where the operator has no such shape: the call that follows says what is wrong with it.
size_t need(const Extents& e, int32_t algorithm) {
  const size_t bytes = em_cuda_scan_workspace(e.batch, e.positions, e.channels, e.directions, e.states, e.steps,
                                              e.dtype, algorithm, kMultiprocessors);
  return bytes == SIZE_MAX ? 0 : bytes;
}

}  // namespace

size_t workspace_for(const nvinfer1::DynamicPluginTensorDesc* inputs) noexcept {
  const auto at = [&](nvinfer1::Dims nvinfer1::DynamicPluginTensorDesc::* bound) {
    Extents e = extents_of(inputs[kDelta].*bound, inputs[kA].*bound, inputs[kOrder].*bound, inputs[kU].desc.type);
    // Bounds are found one by one: those of `order` may be looser than those of the positions, which no call exceeds.
    e.steps = std::min(e.steps, e.positions);
    return e;
  };
  using Desc = nvinfer1::DynamicPluginTensorDesc;
  const Extents least = at(&Desc::min), most = at(&Desc::max);
  size_t bytes = need(most, EM_CUDA_SEQUENTIAL);
  for (Extents e : {least, at(&Desc::opt), most}) {
    for (int64_t batch = std::max(least.batch, int64_t{1}); batch < most.batch && batch < (int64_t{1} << 30);
         batch *= 2) {
      e.batch = batch;
      bytes = std::max(bytes, need(e, EM_CUDA_CHUNKED));
    }
    e.batch = most.batch;
    bytes = std::max(bytes, need(e, EM_CUDA_CHUNKED));
  }
  return bytes;
}

size_t usable_workspace(const nvinfer1::PluginTensorDesc* inputs, int32_t algorithm, size_t granted) noexcept {
  const Extents e = extents_of(inputs[kDelta].dims, inputs[kA].dims, inputs[kOrder].dims, inputs[kU].type);
  const size_t wanted = need(e, algorithm == EM_CUDA_SEQUENTIAL ? EM_CUDA_SEQUENTIAL : EM_CUDA_CHUNKED);
  return std::max(need(e, EM_CUDA_SEQUENTIAL), std::min(wanted, granted));
}

}  // namespace edgemamba::trt
