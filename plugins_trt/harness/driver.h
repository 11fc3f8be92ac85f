// The few functions of the CUDA driver that the harness needs, found with dlopen: it is built without a CUDA toolkit.
#ifndef EDGEMAMBA_HARNESS_DRIVER_H
#define EDGEMAMBA_HARNESS_DRIVER_H

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

using DeviceAddress = uint64_t;  // CUdeviceptr

class Driver {
 public:
  // Device 0's primary context, made current. unusable() is empty, or says why there is none.
  Driver();
  const std::string& unusable() const { return unusable_; }
  const std::string& device() const { return device_; }

  // Each is true where the driver reports success.
  bool allocate(DeviceAddress* address, size_t bytes) const { return allocate_(address, bytes) == 0; }
  void release(DeviceAddress address) const { release_(address); }
  bool upload(DeviceAddress to, const void* from, size_t bytes) const { return upload_(to, from, bytes) == 0; }
  bool download(void* to, DeviceAddress from, size_t bytes) const { return download_(to, from, bytes) == 0; }
  bool make_stream(void** stream) const { return make_stream_(stream, kNonBlocking) == 0; }
  bool wait(void* stream) const { return wait_(stream) == 0; }

 private:
  static constexpr unsigned kNonBlocking = 1;  // CU_STREAM_NON_BLOCKING
  std::string unusable_, device_;
  int (*allocate_)(DeviceAddress*, size_t) = nullptr;
  int (*release_)(DeviceAddress) = nullptr;
  int (*upload_)(DeviceAddress, const void*, size_t) = nullptr;
  int (*download_)(void*, DeviceAddress, size_t) = nullptr;
  int (*make_stream_)(void**, unsigned) = nullptr;
  int (*wait_)(void*) = nullptr;
};

#endif  // EDGEMAMBA_HARNESS_DRIVER_H
