#include "cuda_module.h"

#include <cstring>
#include <memory>
#include <mutex>
#include <utility>

#include "edgemamba/scan_cuda.h"

namespace edgemamba {
namespace {

// A new context may get the address of one that was destroyed; the id tells them apart where the driver has ids.
typedef std::pair<CuContext, unsigned long long> ContextKey;

constexpr CuResult kUnsupportedPtx = 222;
constexpr int kErrorLog = 5, kErrorLogBytes = 6;  // options of cuModuleLoadDataEx

// Every entry of the PTX: the text itself lists them.
std::map<std::string, CuFunction> entries() {
  std::map<std::string, CuFunction> names;
  static constexpr char kEntry[] = ".visible .entry ";
  for (const char* at = std::strstr(kScanPtx, kEntry); at != nullptr; at = std::strstr(at, kEntry)) {
    at += sizeof kEntry - 1;
    names.emplace(std::string(at, std::strcspn(at, "( \n")), nullptr);
  }
  return names;
}

int load(const CudaDriver& driver, CudaModule* out, const Message& message) {
  CuDevice device = 0;
  int status = cuda_status(driver, driver.current_device(&device), "the current context's device", message);
  if (status != EM_OK) return status;
  const int capability = cuda_capability(driver, device);
  if (capability < kOldestCapability) {
    message.set("CUDA: the device has compute capability %d.%d; the scan needs 7.5 or newer", capability / 10,
                capability % 10);
    return EM_CUDA_UNAVAILABLE;
  }
  status = cuda_status(driver, driver.device_attribute(&out->multiprocessors, kAttributeMultiprocessors, device),
                       "the number of multiprocessors", message);
  if (status != EM_OK) return status;

  char log[200] = "";
  int options[] = {kErrorLog, kErrorLogBytes};
  void* values[] = {log, reinterpret_cast<void*>(static_cast<uintptr_t>(sizeof log - 1))};
  CuModule module = nullptr;
  const CuResult result = driver.module_load(&module, kScanPtx, 2, options, values);
  if (result == kUnsupportedPtx) {
    int version = 0;
    driver.driver_version(&version);
    message.set("CUDA: the driver is for CUDA %d.%d; the scan needs one for 12.5 or newer: update the NVIDIA driver",
                version / 1000, version % 1000 / 10);
    return EM_CUDA_UNAVAILABLE;
  }
  if (result != 0) {
    status = cuda_status(driver, result, "loading the scan's device code", message);
    if (log[0] != '\0') message.set("CUDA: loading the scan's device code: %s", log);
    return status;
  }
  out->functions = entries();
  for (auto& entry : out->functions) {
    status = cuda_status(driver, driver.module_function(&entry.second, module, entry.first.c_str()),
                         entry.first.c_str(), message);
    if (status != EM_OK) {
      driver.module_unload(module);
      return status;
    }
  }
  return EM_OK;
}

}  // namespace

const CudaModule* cuda_module(const CudaDriver& driver, int* status, const Message& message) {
  ContextKey key(nullptr, 0);
  *status = cuda_status(driver, driver.current_context(&key.first), "the current context", message);
  if (*status != EM_OK) return nullptr;
  if (key.first == nullptr) {
    message.set("CUDA: no context is current on this thread: make one current, or a tensor on the device, first");
    *status = EM_CUDA_UNAVAILABLE;
    return nullptr;
  }
  if (driver.context_id != nullptr && driver.context_id(key.first, &key.second) != 0) key.second = 0;

  // Never destroyed, and modules never unloaded: both go with their context, or with the process.
  static std::mutex mutex;
  static auto* const modules = new std::map<ContextKey, std::unique_ptr<CudaModule>>;
  const std::lock_guard<std::mutex> lock(mutex);
  auto& slot = (*modules)[key];
  if (slot == nullptr) {
    auto loaded = std::make_unique<CudaModule>();
    *status = load(driver, loaded.get(), message);
    if (*status != EM_OK) return nullptr;
    slot = std::move(loaded);
  }
  return slot.get();
}

}  // namespace edgemamba
