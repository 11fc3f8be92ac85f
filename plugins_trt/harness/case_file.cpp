#include "case_file.h"

#include <cstring>
#include <fstream>

#include "edgemamba/scan.h"
#include "half.h"

using nvinfer1::DataType;

namespace {

constexpr int64_t kLargest = int64_t{1} << 32;  // bytes of one tensor: beyond it the file is damaged

template <typename T>
bool read(std::ifstream& file, T* value) {
  return static_cast<bool>(file.read(reinterpret_cast<char*>(value), sizeof *value));
}

template <typename T>
std::vector<double> widen_as(const std::vector<char>& bytes) {
  std::vector<double> out(bytes.size() / sizeof(T));
  for (size_t i = 0; i < out.size(); ++i) {
    T stored;
    std::memcpy(&stored, &bytes[i * sizeof stored], sizeof stored);
    out[i] = edgemamba::to_float(stored);
  }
  return out;
}

}  // namespace

size_t element_size(DataType type) { return type == DataType::kHALF || type == DataType::kBF16 ? 2 : 4; }

size_t element_count(const nvinfer1::Dims& shape) {
  size_t count = 1;
  for (int32_t i = 0; i < shape.nbDims; ++i) count *= static_cast<size_t>(shape.d[i]);
  return count;
}

std::vector<double> widen(const std::vector<char>& bytes, DataType type) {
  if (type == DataType::kHALF) return widen_as<edgemamba::Float16>(bytes);
  if (type == DataType::kBF16) return widen_as<edgemamba::BFloat16>(bytes);
  std::vector<double> out(bytes.size() / sizeof(float));
  for (size_t i = 0; i < out.size(); ++i) {
    float stored;
    std::memcpy(&stored, &bytes[i * sizeof stored], sizeof stored);
    out[i] = stored;
  }
  return out;
}

bool read_case(const std::string& path, CaseFile* out) {
  std::ifstream file(path, std::ios::binary);
  char magic[8] = "";
  int32_t length = 0, dtype = 0;
  file.read(magic, sizeof magic);
  if (!read(file, &length) || std::memcmp(magic, "EMCASE01", 8) != 0 || length < 0 || length > 256) {
    out->name = "not a case file";
    return false;
  }
  out->name.resize(static_cast<size_t>(length));
  file.read(&out->name[0], length);
  Extents& e = out->extents;
  bool whole = read(file, &dtype) && read(file, &out->delta_softplus);
  for (int64_t* extent : {&e.B, &e.P, &e.Gu, &e.G, &e.D, &e.N, &e.S}) {
    whole = whole && read(file, extent) && *extent >= 0 && *extent < (1 << 20);
  }
  whole = whole && read(file, &out->tolerance);
  out->type = dtype == EM_F16 ? DataType::kHALF : dtype == EM_BF16 ? DataType::kBF16 : DataType::kFLOAT;
  const Descriptions tensors = describe(e, out->type);
  for (size_t i = 0; whole && i < kInputCount; ++i) {
    const size_t bytes = element_count(tensors[i].dims) * element_size(tensors[i].type);
    if (bytes > static_cast<size_t>(kLargest)) whole = false;
    if (!whole) break;
    out->inputs.emplace_back(bytes);
    whole = static_cast<bool>(file.read(out->inputs.back().data(), static_cast<std::streamsize>(bytes)));
  }
  if (whole) {
    out->expected.resize(element_count(tensors[8].dims));
    const auto bytes = static_cast<std::streamsize>(out->expected.size() * sizeof(double));
    whole = static_cast<bool>(file.read(reinterpret_cast<char*>(out->expected.data()), bytes));
  }
  if (!whole) out->name = "cut short";
  return whole;
}
