// libedgemamba_trtN_autoload.so: registers the plugin as soon as it is loaded.
//
// For tools that only dlopen a plugin library and expect it to register itself: Polygraphy's --plugins, trtexec's
// --staticPlugins, ctypes.CDLL. The plugin itself must not do that: IPluginRegistry::loadLibrary refuses a library
// whose creator is there already. So this one finds TensorRT and has its registry load the plugin that lies beside it.
#include <dlfcn.h>

#include <cstdio>
#include <cstring>

#include "registry.h"

#ifndef EDGEMAMBA_TRT_PLUGIN_FILE
#error "EDGEMAMBA_TRT_PLUGIN_FILE: the plugin's file name, which lies beside this library"
#endif

namespace {

using edgemamba::trt::Registry;

// Each of these has a registry of its own. The major of the headers comes first: it is what the plugin was built for.
constexpr const char* kLibraries[] = {
#if EDGEMAMBA_TRT_MAJOR >= 11
    "libnvinfer.so.11",          "libnvinfer.so.10",
#else
    "libnvinfer.so.10",          "libnvinfer.so.11",
#endif
    "libtensorrt_rtx.so.1",      "libnvinfer_lean.so.11",     "libnvinfer_lean.so.10",
    "libnvinfer_dispatch.so.11", "libnvinfer_dispatch.so.10",
};

constexpr char kCreator[] = "SelectiveScan", kVersion[] = "1", kNamespace[] = "edgemamba";

void complain(const char* what, const char* detail) {
  std::fprintf(stderr, "edgemamba: the TensorRT plugin is not registered: %s%s\n", what, detail);
}

// The path of the plugin: this library's folder and the plugin's name.
bool plugin_path(char* path, size_t size) {
  Dl_info self;
  if (dladdr(reinterpret_cast<const void*>(&kCreator), &self) == 0 || self.dli_fname == nullptr) return false;
  const char* slash = std::strrchr(self.dli_fname, '/');
  const int folder = slash ? static_cast<int>(slash - self.dli_fname) + 1 : 0;
  const int length = std::snprintf(path, size, "%.*s%s", folder, self.dli_fname, EDGEMAMBA_TRT_PLUGIN_FILE);
  return length > 0 && static_cast<size_t>(length) < size;
}

// True where the library is there and its registry now has the plugin.
bool register_in(const char* name, int flags, const char* plugin, bool* found) {
  void* library = dlopen(name, flags);
  if (library == nullptr) return false;
  const Registry registry = Registry::of(library, name);
  if (!registry) return false;
  *found = true;
  // A second load, or an application's own registration, is no failure.
  return registry.creator(kCreator, kVersion, kNamespace) != nullptr || registry.load_library(plugin) != nullptr;
}

__attribute__((constructor)) void register_plugin() {
  char plugin[4096];
  if (!plugin_path(plugin, sizeof plugin)) return complain("its path cannot be found", "");
  // What is in the process already; every one of them, because we cannot know which the application builds with.
  bool found = false, registered = false;
  for (const char* name : kLibraries) {
    registered = register_in(name, RTLD_NOW | RTLD_NOLOAD, plugin, &found) || registered;
  }
  // Polygraphy loads plugins before it imports TensorRT.
  for (const char* name : kLibraries) {
    if (found) break;
    registered = register_in(name, RTLD_NOW | RTLD_GLOBAL, plugin, &found);
  }
  if (!found) {
    return complain("no TensorRT library is loaded or on the library path",
                    "; `import tensorrt` first, or add its folder to LD_LIBRARY_PATH");
  }
  if (!registered) complain("TensorRT's registry would not load ", plugin);
}

}  // namespace
