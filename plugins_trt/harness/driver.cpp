#include "driver.h"

#include <dlfcn.h>

Driver::Driver() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW);
  if (library == nullptr) {
    unusable_ = "no NVIDIA driver (libcuda.so.1)";
    return;
  }
  bool complete = true;
  const auto find = [&](auto* function, const char* name) {
    *function = reinterpret_cast<std::remove_pointer_t<decltype(function)>>(dlsym(library, name));
    complete = complete && *function != nullptr;
  };
  int (*initialise)(unsigned) = nullptr;
  int (*get_device)(int*, int) = nullptr;
  int (*get_name)(char*, int, int) = nullptr;
  int (*retain)(void**, int) = nullptr;
  int (*set_current)(void*) = nullptr;
  find(&initialise, "cuInit");
  find(&get_device, "cuDeviceGet");
  find(&get_name, "cuDeviceGetName");
  find(&retain, "cuDevicePrimaryCtxRetain");
  find(&set_current, "cuCtxSetCurrent");
  find(&allocate_, "cuMemAlloc_v2");
  find(&release_, "cuMemFree_v2");
  find(&upload_, "cuMemcpyHtoD_v2");
  find(&download_, "cuMemcpyDtoH_v2");
  find(&make_stream_, "cuStreamCreate");
  find(&wait_, "cuStreamSynchronize");
  int device = 0;
  void* context = nullptr;
  char name[256] = "";
  if (!complete) {
    unusable_ = "libcuda.so.1 lacks functions";
  } else if (initialise(0) != 0 || get_device(&device, 0) != 0) {
    unusable_ = "the NVIDIA driver has no device";
  } else if (retain(&context, device) != 0 || set_current(context) != 0) {
    unusable_ = "device 0 gives no context";
  } else {
    get_name(name, sizeof name, device);
    device_ = name;
  }
}
