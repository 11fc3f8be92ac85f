// enqueue on device buffers: every case file under every tactic, compared with the expected float64 results, with guard
// zones around what may be written.
#include <cmath>
#include <cstring>

#include "case_file.h"
#include "check.h"
#include "driver.h"
#include "fields.h"
#include "sections.h"

using nvinfer1::TensorRTPhase;

namespace {

// A device buffer between two guard zones.
class Buffer {
 public:
  Buffer(const Driver& driver, size_t bytes) : driver_(driver), host_(bytes + 2 * kGuard, kPattern) {
    usable_ = driver.allocate(&address_, host_.size()) && driver.upload(address_, host_.data(), host_.size());
  }
  ~Buffer() {
    if (address_) driver_.release(address_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  bool usable() const { return usable_; }
  void* data() const { return reinterpret_cast<void*>(address_ + kGuard); }
  void fill(const std::vector<char>& bytes) {
    usable_ = usable_ && (bytes.empty() || driver_.upload(address_ + kGuard, bytes.data(), bytes.size()));
  }
  // What lies between the guards; false where it cannot be read or a guard was written over.
  bool read(std::vector<char>* bytes) {
    if (!usable_ || !driver_.download(host_.data(), address_, host_.size())) return false;
    const size_t end = host_.size() - kGuard;
    for (size_t i = 0; i < kGuard; ++i) {
      if (host_[i] != kPattern || host_[end + i] != kPattern) return false;
    }
    bytes->assign(host_.begin() + kGuard, host_.begin() + static_cast<std::ptrdiff_t>(end));
    return true;
  }

 private:
  static constexpr size_t kGuard = 512;     // keeps what lies between aligned as TensorRT's buffers are
  static constexpr char kPattern = '\xff';  // a NaN in every floating type
  const Driver& driver_;
  std::vector<char> host_;
  DeviceAddress address_ = 0;
  bool usable_ = false;
};

// Largest error relative to the largest value; NaN anywhere makes it infinite.
double relative_error(const std::vector<double>& found, const std::vector<double>& expected) {
  double error = 0, scale = 1e-30;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double difference = std::abs(found[i] - expected[i]);
    if (!(difference < HUGE_VAL)) return HUGE_VAL;
    error = std::fmax(error, difference);
    scale = std::fmax(scale, std::abs(expected[i]));
  }
  return error / scale;
}

void run_case(const Subject& subject, const Driver& driver, const CaseFile& given, int32_t tactic, void* stream) {
  // The way through an engine: configured, stored, read, attached.
  const Layer built = make_layer(subject, given.delta_softplus, TensorRTPhase::kBUILD);
  const Descriptions tensors = describe(given.extents, given.type);
  const Ranges range = describe_range(given.extents, given.extents, given.extents, given.type);
  built.build->configurePlugin(range.data(), kInputCount, &range[8], 1);
  const Stored stored(built.runtime->getFieldsToSerialize());
  const Layer read(subject.creator()->createPlugin("layer", stored.collection(), TensorRTPhase::kRUNTIME));
  const Layer layer(read.runtime->attachToContext(nullptr));
  Buffer workspace(driver, built.build->getWorkspaceSize(range.data(), kInputCount, &range[8], 1));
  Buffer y(driver, element_count(tensors[8].dims) * element_size(given.type));
  std::vector<std::unique_ptr<Buffer>> inputs;
  std::vector<const void*> addresses;
  bool ready = workspace.usable() && y.usable();
  for (const auto& bytes : given.inputs) {
    inputs.push_back(std::make_unique<Buffer>(driver, bytes.size()));
    inputs.back()->fill(bytes);
    ready = ready && inputs.back()->usable();
    addresses.push_back(inputs.back()->data());
  }
  void* const results[] = {y.data()};
  std::vector<char> written, scratch;
  const bool enqueued = ready && layer.runtime->setTactic(tactic) == 0 &&
                        layer.runtime->onShapeChange(tensors.data(), kInputCount, &tensors[8], 1) == 0 &&
                        layer.runtime->enqueue(tensors.data(), &tensors[8], addresses.data(), results, workspace.data(),
                                               static_cast<cudaStream_t>(stream)) == 0;
  if (!check(enqueued && driver.wait(stream), "%s, tactic %d: enqueue%s%s", given.name.c_str(), tactic,
             enqueued ? "" : ": ", enqueued ? "" : subject.last_error().c_str())) {
    return;
  }
  const bool intact = y.read(&written) && workspace.read(&scratch);
  const double error = intact ? relative_error(widen(written, given.type), given.expected) : HUGE_VAL;
  check(error <= given.tolerance, "%s, tactic %d: error %.2g of at most %.2g, nothing beside the buffers written",
        given.name.c_str(), tactic, error, given.tolerance);
}

// Without a device enqueue must fail, say why, and return.
void check_refusal(const Subject& subject) {
  const Layer layer = make_layer(subject, 1, TensorRTPhase::kRUNTIME);
  const Descriptions tensors = describe({}, nvinfer1::DataType::kFLOAT);
  layer.runtime->onShapeChange(tensors.data(), kInputCount, &tensors[8], 1);
  std::vector<char> memory(1 << 16);
  const std::vector<const void*> addresses(kInputCount, memory.data());
  void* const results[] = {memory.data()};
  const int32_t status =
      layer.runtime->enqueue(tensors.data(), &tensors[8], addresses.data(), results, memory.data(), nullptr);
  check(status != 0 && !subject.last_error().empty(), "enqueue without a device refuses: %s",
        subject.last_error().c_str());
}

}  // namespace

void check_device(const Subject& subject, const std::vector<std::string>& case_files) {
  std::vector<CaseFile> cases;
  for (const std::string& path : case_files) {
    CaseFile read;
    if (check(read_case(path, &read), "case file %s: %s", path.c_str(), read.name.c_str())) cases.push_back(read);
  }
  const Driver driver;
  if (!driver.unusable().empty()) {
    check_refusal(subject);
    return skip("enqueue on a device: %s", driver.unusable().c_str());
  }
  void* stream = nullptr;
  if (!check(driver.make_stream(&stream), "a stream on %s", driver.device().c_str())) return;
  for (const CaseFile& given : cases) {
    for (const int32_t tactic : {0, 1, 2}) run_case(subject, driver, given, tactic, stream);
  }
}
