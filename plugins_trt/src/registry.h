// A TensorRT library's plugin registry, called through its virtual table by slot.
//
// TensorRT 11 removed four virtual functions of IPluginRegistry that served the old plugin interfaces (registerCreator,
// getPluginCreatorList, getPluginCreator before the destructor's two entries, and deregisterCreator after the error
// recorder's), so a call compiled with one major's headers lands in another function of the other major's library. The
// functions that are left kept their order and their signatures. Slots are therefore written down here for both, and
// what is loaded decides: one autoload library and one harness serve every major.
#ifndef EDGEMAMBA_TRT_REGISTRY_H
#define EDGEMAMBA_TRT_REGISTRY_H

#include <dlfcn.h>
#include <stdint.h>

#include "host.h"

namespace edgemamba::trt {

class Registry {
 public:
  Registry() = default;

  // Of a library that dlopen gave; empty where it is not a TensorRT library of a known major.
  static Registry of(void* library, const char* file) {
    Registry registry;
    auto* version = reinterpret_cast<int32_t (*)()>(dlsym(library, "getInferLibVersion"));
    auto* get = reinterpret_cast<void* (*)()>(dlsym(library, "getPluginRegistry"));
    if (version == nullptr || get == nullptr) return registry;
    registry.host_ = read_host(file, version());
    if (registry.host_.major >= kOldestMajor && registry.host_.major <= kNewestMajor) registry.object_ = get();
    return registry;
  }

  explicit operator bool() const { return object_ != nullptr; }
  const Host& host() const { return host_; }

  // The functions of IPluginRegistry, as NVIDIA documents them. A creator is an IPluginCreatorInterface*; void here, so
  // that this file needs no TensorRT header.
  void* load_library(const char* path) const { return call<void*>(kLoadLibrary, path); }
  void deregister_library(void* handle) const { call<void>(kDeregisterLibrary, handle); }
  void* const* all_creators(int32_t* count) const { return call<void* const*>(kGetAllCreators, count); }
  void* creator(const char* name, const char* version, const char* name_space) const {
    return call<void*>(kGetCreator, name, version, name_space);
  }

 private:
  // In TensorRT 10; 11 has each four slots earlier.
  enum Slot { kLoadLibrary = 10, kDeregisterLibrary = 11, kGetAllCreators = 13, kGetCreator = 14 };
  static constexpr int kRemovedIn11 = 4;

  // The Itanium C++ ABI (Linux on x86-64 and aarch64): a virtual table is an array of functions that take `this` first.
  template <typename Result, typename... Arguments>
  Result call(Slot slot, Arguments... arguments) const {
    void* const* table = *static_cast<void* const* const*>(object_);
    void* function = table[host_.major >= 11 ? slot - kRemovedIn11 : slot];
    return reinterpret_cast<Result (*)(void*, Arguments...)>(function)(object_, arguments...);
  }

  void* object_ = nullptr;
  Host host_;
};

}  // namespace edgemamba::trt

#endif  // EDGEMAMBA_TRT_REGISTRY_H
