#include "host.h"

#include <dlfcn.h>

#include <cstring>

namespace edgemamba::trt {

Host read_host(const char* file, int32_t version) {
  Host host;
  if (file == nullptr || version <= 0) return host;
  const char* name = std::strrchr(file, '/');
  name = name ? name + 1 : file;
  host.version = version;
  host.rtx = std::strstr(name, "_rtx") != nullptr;
  // 10.16.1 is 101601 and RTX 1.7.1 is 10701; before 9.0 TensorRT counted in thousands (8.6.1 was 8601).
  const int32_t major = version < 10000 ? version / 1000 : version / 10000;
  host.major = host.rtx ? (major == 1 ? 11 : major + 10) : major;
  return host;
}

Host host_of(const void* object) {
  Host host;
  if (object == nullptr) return host;
  const void* table = *static_cast<const void* const*>(object);
  Dl_info where;
  if (table == nullptr || dladdr(table, &where) == 0 || where.dli_fname == nullptr) return host;
  void* library = dlopen(where.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  if (library == nullptr) return host;
  // Not inherited from a dependency: the symbol must be this very library's.
  void* symbol = dlsym(library, "getInferLibVersion");
  Dl_info owner;
  if (symbol != nullptr && dladdr(symbol, &owner) != 0 && owner.dli_fbase == where.dli_fbase) {
    host = read_host(where.dli_fname, reinterpret_cast<int32_t (*)()>(symbol)());
  }
  dlclose(library);
  return host;
}

}  // namespace edgemamba::trt
