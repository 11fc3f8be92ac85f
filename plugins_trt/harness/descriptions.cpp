#include "descriptions.h"

using nvinfer1::DataType;

nvinfer1::Dims dims(std::initializer_list<int64_t> extents) {
  nvinfer1::Dims out{};
  for (const int64_t extent : extents) out.d[out.nbDims++] = extent;
  return out;
}

Descriptions describe(const Extents& e, DataType type) {
  const DataType f32 = DataType::kFLOAT, i32 = DataType::kINT32;
  const auto tensor = [](const nvinfer1::Dims& shape, DataType of) {
    nvinfer1::PluginTensorDesc out{};
    out.dims = shape;
    out.type = of;
    out.format = nvinfer1::TensorFormat::kLINEAR;
    out.scale = 1.0F;
    return out;
  };
  return {tensor(dims({e.B, e.P, e.Gu, e.D}), type),
          tensor(dims({e.B, e.P, e.G, e.D}), type),
          tensor(dims({e.G, e.D, e.N}), f32),
          tensor(dims({e.B, e.P, e.G, e.N}), type),
          tensor(dims({e.B, e.P, e.G, e.N}), type),
          tensor(dims({e.G, e.D}), f32),
          tensor(dims({e.G, e.D}), f32),
          tensor(dims({e.G, e.S}), i32),
          tensor(dims({e.B, e.P, e.D}), type)};
}

Ranges describe_range(const Extents& least, const Extents& usual, const Extents& most, DataType type) {
  Extents unknown = usual;
  unknown.B = unknown.P = unknown.S = -1;
  const Descriptions symbolic = describe(unknown, type), minimum = describe(least, type);
  const Descriptions optimum = describe(usual, type), maximum = describe(most, type);
  Ranges out;
  for (size_t i = 0; i < out.size(); ++i) {
    out[i].desc = symbolic[i];
    out[i].min = minimum[i].dims;
    out[i].max = maximum[i].dims;
    out[i].opt = optimum[i].dims;
  }
  return out;
}
