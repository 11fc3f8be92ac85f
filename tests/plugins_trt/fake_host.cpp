// Stands in for a TensorRT library of another major, as far as a plugin can see one before it is used: it hands over an
// object whose virtual table lies in a library that calls itself version VERSION, and asks for the creators.
#include <dlfcn.h>
#include <stdint.h>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {
struct Finder {
  // Where this is called, the plugin used an interface of the wrong major.
  virtual void* find() noexcept {
    ++calls;
    return nullptr;
  }
  int calls = 0;
} finder;
}  // namespace

EXPORT int32_t getInferLibVersion() { return VERSION; }

// How many creators the plugin at `path` offers; -1: it cannot be loaded, -2: it called us.
EXPORT int32_t ask(const char* path) {
  void* plugin = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (plugin == nullptr) return -1;
  reinterpret_cast<void (*)(void*)>(dlsym(plugin, "setLoggerFinder"))(&finder);
  int32_t count = -3;
  reinterpret_cast<void* const* (*)(int32_t&)>(dlsym(plugin, "getCreators"))(count);
  return finder.calls ? -2 : count;
}
