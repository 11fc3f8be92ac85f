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

// Libraries that have a plugin registry, each one of its own, and the folders that their wheels make in site-packages.
// They build engines ...
struct Library {
  const char *name, *wheel;
};
constexpr Library kBuilders[] = {
#if EDGEMAMBA_TRT_MAJOR >= 11  // what the plugin was built for comes first
    {"libnvinfer.so.11", "tensorrt_libs"},
    {"libnvinfer.so.10", "tensorrt_libs"},
#else
    {"libnvinfer.so.10", "tensorrt_libs"},
    {"libnvinfer.so.11", "tensorrt_libs"},
#endif
    {"libtensorrt_rtx.so.1", "tensorrt_rtx_libs"},
};
// ... or only run them.
constexpr Library kRunners[] = {
    {"libnvinfer_lean.so.11", "tensorrt_lean_libs"},
    {"libnvinfer_lean.so.10", "tensorrt_lean_libs"},
    {"libnvinfer_dispatch.so.11", "tensorrt_dispatch_libs"},
    {"libnvinfer_dispatch.so.10", "tensorrt_dispatch_libs"},
};

constexpr char kCreator[] = "SelectiveScan", kVersion[] = "1", kNamespace[] = "edgemamba";

void complain(const char* what, const char* detail) {
  std::fprintf(stderr, "edgemamba: the TensorRT plugin is not registered: %s%s\n", what, detail);
}

// A path relative to this library's folder; false where it does not fit.
struct Path {
  char text[4096];
  bool set(const char* folder, const char* name) {
    Dl_info self;
    if (dladdr(reinterpret_cast<const void*>(&kCreator), &self) == 0 || self.dli_fname == nullptr) return false;
    const char* slash = std::strrchr(self.dli_fname, '/');
    const int length = slash ? static_cast<int>(slash - self.dli_fname) + 1 : 0;
    const int wrote = std::snprintf(text, sizeof text, "%.*s%s%s", length, self.dli_fname, folder, name);
    return wrote > 0 && static_cast<size_t>(wrote) < sizeof text;
  }
};

class Registration {
 public:
  bool prepare() { return plugin_.set("", EDGEMAMBA_TRT_PLUGIN_FILE); }

  // Registers where the library is in the process already.
  void if_loaded(const Library& library) { in(library, dlopen(library.name, RTLD_NOW | RTLD_NOLOAD)); }

  // Loads the library, from the library path or from its wheel where this one was installed beside it:
  // site-packages/edgemamba/runtime/ and site-packages/tensorrt_libs/.
  void if_installed(const Library& library) {
    void* handle = dlopen(library.name, RTLD_NOW | RTLD_GLOBAL);
    Path path;
    char name[128];
    std::snprintf(name, sizeof name, "%s/%s", library.wheel, library.name);
    if (handle == nullptr && path.set("../../", name)) handle = dlopen(path.text, RTLD_NOW | RTLD_GLOBAL);
    in(library, handle);
  }

  bool found() const { return found_; }

  // After all were tried.
  void report() const {
    if (!found_) {
      complain("no TensorRT library is loaded, beside it or on the library path",
               "; `import tensorrt` first, or add its folder to LD_LIBRARY_PATH");
    } else if (!registered_) {
      complain("TensorRT's registry would not load ", plugin_.text);
    }
  }

 private:
  void in(const Library& library, void* handle) {
    if (handle == nullptr) return;
    const Registry registry = Registry::of(handle, library.name);
    if (!registry) return;
    found_ = true;
    // A second load, or an application's own registration, is no failure.
    const bool there = registry.creator(kCreator, kVersion, kNamespace) != nullptr;
    registered_ = there || registry.load_library(plugin_.text) != nullptr || registered_;
  }

  Path plugin_;
  bool found_ = false, registered_ = false;
};

// We cannot know which library the application will use: all that are loaded, else all that it could build with, else
// the first that could run. Polygraphy loads plugins before it imports TensorRT.
__attribute__((constructor)) void register_plugin() {
  Registration registration;
  if (!registration.prepare()) return complain("its path cannot be found", "");
  for (const Library& library : kBuilders) registration.if_loaded(library);
  for (const Library& library : kRunners) registration.if_loaded(library);
  if (!registration.found()) {
    for (const Library& library : kBuilders) registration.if_installed(library);
  }
  for (const Library& library : kRunners) {
    if (registration.found()) break;
    registration.if_installed(library);
  }
  registration.report();
}

}  // namespace
