// How much device memory a layer asks the builder for, and how much of it a call may use.
//
// The kernels need some bytes for a shape, and use more where they get them: the chunked form keeps states of every
// chunk, and small batches have more chunks than large ones. So a profile's need is not that of its largest shape
// alone, and it grows with the device. TensorRT does not say at run time what it granted: the layer remembers what it
// asked for, also in the engine file, which may have been built on another machine.
#ifndef EDGEMAMBA_TRT_WORKSPACE_H
#define EDGEMAMBA_TRT_WORKSPACE_H

#include "shapes.h"

namespace edgemamba::trt {

// What to ask for: enough for every shape between the bounds in the sequential form, and for those that were looked at
// (the bounds, the optimum, every power of two of the batch) in the chunked form. 0 for shapes that the operator has
// not.
size_t workspace_for(const nvinfer1::DynamicPluginTensorDesc* inputs) noexcept;

// What a call of this shape may use of a workspace that was asked for with `granted` bytes or more. The sequential
// form's need grows with every extent, so the largest shape's covers it whatever was remembered.
size_t usable_workspace(const nvinfer1::PluginTensorDesc* inputs, int32_t algorithm, size_t granted) noexcept;

}  // namespace edgemamba::trt

#endif  // EDGEMAMBA_TRT_WORKSPACE_H
