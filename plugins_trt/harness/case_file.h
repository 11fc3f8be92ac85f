// One scan with its inputs and the answer in float64, as tests/plugins_trt/case_files.py writes it: little-endian
//
//   char[8] "EMCASE01"; int32 length, name; int32 dtype of u (enum em_dtype); int32 delta_softplus;
//   int64 B, P, Gu, G, D, N, S; double tolerance;
//   u, delta, A, B, C, D, delta_bias, order, each row-major without padding; double y[B * P * D]
#ifndef EDGEMAMBA_HARNESS_CASE_FILE_H
#define EDGEMAMBA_HARNESS_CASE_FILE_H

#include <string>
#include <vector>

#include "descriptions.h"

struct CaseFile {
  std::string name;
  nvinfer1::DataType type = nvinfer1::DataType::kFLOAT;
  int32_t delta_softplus = 1;
  Extents extents;
  double tolerance = 0;  // largest error, relative to the largest |y|
  std::vector<std::vector<char>> inputs;
  std::vector<double> expected;
};

// False, with a reason in `name`, where the file is not such a file.
bool read_case(const std::string& path, CaseFile* out);

size_t element_size(nvinfer1::DataType type);
size_t element_count(const nvinfer1::Dims& shape);

// y as the device wrote it, in float64.
std::vector<double> widen(const std::vector<char>& bytes, nvinfer1::DataType type);

#endif  // EDGEMAMBA_HARNESS_CASE_FILE_H
