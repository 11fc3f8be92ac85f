// A deep copy of a layer's fields: what an engine file keeps.
#ifndef EDGEMAMBA_HARNESS_FIELDS_H
#define EDGEMAMBA_HARNESS_FIELDS_H

#include <NvInferRuntime.h>

#include <string>
#include <vector>

inline size_t size_of(nvinfer1::PluginFieldType type) {
  using nvinfer1::PluginFieldType;
  switch (type) {
    case PluginFieldType::kINT64:
    case PluginFieldType::kFLOAT64: return 8;
    case PluginFieldType::kINT32:
    case PluginFieldType::kFLOAT32: return 4;
    case PluginFieldType::kFLOAT16:
    case PluginFieldType::kINT16: return 2;
    default: return 1;
  }
}

class Stored {
 public:
  Stored(const Stored&) = delete;  // holds addresses of its own members
  Stored& operator=(const Stored&) = delete;
  explicit Stored(const nvinfer1::PluginFieldCollection* from) {
    for (int32_t i = 0; from && i < from->nbFields; ++i) {
      const nvinfer1::PluginField& field = from->fields[i];
      const auto* bytes = static_cast<const char*>(field.data);
      names_.emplace_back(field.name);
      data_.emplace_back(bytes, bytes + size_of(field.type) * static_cast<size_t>(field.length));
      fields_.push_back(field);
    }
    for (size_t i = 0; i < fields_.size(); ++i) {
      fields_[i].name = names_[i].c_str();
      fields_[i].data = data_[i].data();
    }
    collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
  }
  const nvinfer1::PluginFieldCollection* collection() const { return &collection_; }
  bool operator==(const Stored& other) const { return names_ == other.names_ && data_ == other.data_; }

 private:
  std::vector<std::string> names_;
  std::vector<std::vector<char>> data_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_{};
};

#endif  // EDGEMAMBA_HARNESS_FIELDS_H
