// edgemamba::SelectiveScan version 1 for ONNX Runtime's CPU and CUDA providers: a thin adapter over the C ABI of scan.h
// and scan_cuda.h, which validates the arguments and computes. One op is registered for each provider and element type;
// kernels keep no state. Where there is no CUDA provider, its ops are never asked for.
#include <array>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#include "cuda_call.h"
#include "edgemamba/scan.h"
#include "onnxruntime_abi.h"

namespace edgemamba::ort {
namespace {

constexpr const char* kDomain = "edgemamba";
constexpr const char* kOpName = "SelectiveScan";
constexpr int kOpVersion = 1;
// A session option that tells how many threads the session has: the API lets an op use them but not count them.
constexpr const char* kThreadsOption = "edgemamba.intra_op_num_threads";

enum class Provider { kCpu, kCuda };

constexpr size_t kInputs = 8;
constexpr int32_t kMaxRank = 8;

#define EM_RETURN_IF_ERROR(expression)                \
  do {                                                \
    if (OrtStatus* status_ = (expression)) return status_; \
  } while (false)

// What ONNX Runtime sees is the base class; it hands `this` back to each callback.
struct SelectiveScanOp : CustomOp {
  SelectiveScanOp(Provider where, ElementType type, const ApiTable* table, int thread_count);

  const Provider provider;
  const ElementType element_type;
  const ApiTable* const api;
  const int threads;  // of the session; 0: not known
};

struct Kernel {
  const ApiTable* api;
  int threads;
  int32_t delta_softplus;
};

// A tensor's address, type and shape, in the form that the C ABI takes. `view.shape` points into `extents`.
struct Argument {
  em_tensor view{};
  std::array<int64_t, kMaxRank> extents{};
};

OrtStatus* read_argument(const ApiTable& api, const OrtKernelContext* context, size_t index, Argument* out) {
  const OrtValue* value = nullptr;
  EM_RETURN_IF_ERROR(api.KernelContext_GetInput(context, index, &value));
  if (value == nullptr) return api.CreateStatus(kInvalidArgument, "SelectiveScan: all eight inputs are mandatory");
  OrtTensorTypeAndShapeInfo* info = nullptr;
  EM_RETURN_IF_ERROR(api.GetTensorTypeAndShape(value, &info));
  size_t rank = 0;
  OrtStatus* status = api.GetTensorElementType(info, &out->view.dtype);
  if (status == nullptr) status = api.GetDimensionsCount(info, &rank);
  if (status == nullptr && rank <= out->extents.size()) status = api.GetDimensions(info, out->extents.data(), rank);
  api.ReleaseTensorTypeAndShapeInfo(info);
  EM_RETURN_IF_ERROR(status);
  // No input has more than four dimensions: of one with more than eight, the rank alone is enough to be refused.
  out->view.rank = static_cast<int32_t>(rank);
  out->view.shape = out->extents.data();
  return api.GetTensorMutableData(const_cast<OrtValue*>(value), &out->view.data);
}

struct ThreadPool {
  const ApiTable* api;
  const OrtKernelContext* context;

  static int parallel_for(void* self, void (*task)(void*, size_t), void* data, size_t count) {
    const auto& pool = *static_cast<const ThreadPool*>(self);
    // As many batches as tasks: the kernel's tasks are few and large, and a thread that is late takes fewer of them.
    OrtStatus* status = pool.api->KernelContext_ParallelFor(pool.context, task, count, count, data);
    if (status == nullptr) return 0;
    pool.api->ReleaseStatus(status);
    return 1;
  }
};

// A node's tensors in the form that the C ABI takes; `inputs` and `y` point into the other members.
struct Call {
  std::array<Argument, kInputs> in;
  std::array<int64_t, 3> shape{};
  em_scan_inputs inputs{};
  em_tensor y{};
};

OrtStatus* read_call(const Kernel& kernel, OrtKernelContext* context, Call* call) {
  const ApiTable& api = *kernel.api;
  auto& in = call->in;
  for (size_t i = 0; i < kInputs; ++i) EM_RETURN_IF_ERROR(read_argument(api, context, i, &in[i]));
  // y is (B, P, D) of delta. A delta of another rank has no output shape; the call that follows says so.
  const Argument& delta = in[1];
  if (delta.view.rank == 4) call->shape = {delta.extents[0], delta.extents[1], delta.extents[3]};
  OrtValue* output = nullptr;
  EM_RETURN_IF_ERROR(api.KernelContext_GetOutput(context, 0, call->shape.data(), call->shape.size(), &output));
  call->y = {nullptr, call->shape.data(), static_cast<int32_t>(call->shape.size()), in[0].view.dtype};
  call->inputs = {in[0].view, in[1].view, in[2].view, in[3].view,           in[4].view,
                  in[5].view, in[6].view, in[7].view, kernel.delta_softplus};
  return api.GetTensorMutableData(output, &call->y.data);
}

// A failure's message, which starts with the op's name.
class Report {
 public:
  Report() : prefix_(static_cast<size_t>(std::snprintf(text_, sizeof text_, "SelectiveScan: "))) {}
  char* message() { return text_ + prefix_; }
  size_t size() const { return sizeof text_ - prefix_; }
  OrtStatus* status(const ApiTable& api, int status) const {
    if (status == EM_OK) return nullptr;
    return api.CreateStatus(status == EM_INVALID_ARGUMENT ? kInvalidArgument : kFail, text_);
  }

 private:
  char text_[512];
  size_t prefix_;
};

OrtStatus* compute_on_cpu(void* self, OrtKernelContext* context) {
  const Kernel& kernel = *static_cast<const Kernel*>(self);
  Call call;
  EM_RETURN_IF_ERROR(read_call(kernel, context, &call));
  ThreadPool pool{kernel.api, context};
  const em_executor executor{kernel.threads, &pool, &ThreadPool::parallel_for};
  Report report;
  return report.status(*kernel.api,
                       em_selective_scan(&call.inputs, &call.y, &executor, report.message(), report.size()));
}

// ONNX Runtime has made the session's device current, and every address is of that device.
OrtStatus* compute_on_cuda(void* self, OrtKernelContext* context) {
  const Kernel& kernel = *static_cast<const Kernel*>(self);
  Call call;
  EM_RETURN_IF_ERROR(read_call(kernel, context, &call));
  void* stream = nullptr;
  EM_RETURN_IF_ERROR(kernel.api->KernelContext_GetGPUComputeStream(context, &stream));
  Report report;
  return report.status(*kernel.api, scan_in_stream(call.inputs, call.y, stream, report.message(), report.size()));
}

OrtStatus* create_kernel(const CustomOp* self, const ApiTable*, const OrtKernelInfo* info, void** out) {
  const auto& op = *static_cast<const SelectiveScanOp*>(self);
  int64_t delta_softplus = 1;
  if (OrtStatus* absent = op.api->KernelInfoGetAttribute_int64(info, "delta_softplus", &delta_softplus)) {
    op.api->ReleaseStatus(absent);
    delta_softplus = 1;
  }
  if (delta_softplus != 0 && delta_softplus != 1) {
    return op.api->CreateStatus(kInvalidArgument, "SelectiveScan: delta_softplus must be 0 or 1");
  }
  *out = new (std::nothrow) Kernel{op.api, op.threads, static_cast<int32_t>(delta_softplus)};
  return *out ? nullptr : op.api->CreateStatus(kFail, "SelectiveScan: out of memory");
}

// The extent and the symbol of a dimension of an input while the graph is resolved.
struct Dimension {
  int64_t extent = -1;
  const char* symbol = "";
  bool known() const { return extent >= 0 || *symbol != '\0'; }
};

// Leaves `out` as it is where the input has no shape, or not four dimensions.
OrtStatus* read_dimensions(const ApiTable& api, const OrtTensorTypeAndShapeInfo* info, std::array<Dimension, 4>* out) {
  size_t rank = 0;
  EM_RETURN_IF_ERROR(api.GetDimensionsCount(info, &rank));
  if (rank != out->size()) return nullptr;
  std::array<int64_t, 4> extents{};
  std::array<const char*, 4> symbols{};
  EM_RETURN_IF_ERROR(api.GetDimensions(info, extents.data(), rank));
  EM_RETURN_IF_ERROR(api.GetSymbolicDimensions(info, symbols.data(), rank));
  for (size_t i = 0; i < rank; ++i) (*out)[i] = {extents[i], symbols[i] != nullptr ? symbols[i] : ""};
  return nullptr;
}

// y: u's type, (B, P, D), each taken from u or, where u does not tell, from delta. ONNX Runtime asks the op that was
// registered first, whichever type the node has, so that `self` does not tell the type.
OrtStatus* infer_shape(const CustomOp* self, OrtShapeInferContext* context) {
  const ApiTable& api = *static_cast<const SelectiveScanOp*>(self)->api;
  OrtTensorTypeAndShapeInfo *u_info = nullptr, *delta_info = nullptr;
  EM_RETURN_IF_ERROR(api.ShapeInferContext_GetInputTypeShape(context, 0, &u_info));
  EM_RETURN_IF_ERROR(api.ShapeInferContext_GetInputTypeShape(context, 1, &delta_info));
  ElementType type = 0;
  EM_RETURN_IF_ERROR(api.GetTensorElementType(u_info, &type));
  std::array<Dimension, 4> u, delta;
  EM_RETURN_IF_ERROR(read_dimensions(api, u_info, &u));
  EM_RETURN_IF_ERROR(read_dimensions(api, delta_info, &delta));
  std::array<int64_t, 3> extents{};
  std::array<const char*, 3> symbols{};
  constexpr std::array<size_t, 3> kSources{0, 1, 3};
  for (size_t i = 0; i < kSources.size(); ++i) {
    const Dimension& dimension = u[kSources[i]].known() ? u[kSources[i]] : delta[kSources[i]];
    // A dimension without extent and symbol cannot be told to ONNX Runtime, which would read it as the number -1.
    if (!dimension.known()) return nullptr;
    extents[i] = dimension.extent;
    symbols[i] = dimension.symbol;
  }
  OrtTensorTypeAndShapeInfo* info = nullptr;
  EM_RETURN_IF_ERROR(api.CreateTensorTypeAndShapeInfo(&info));
  OrtStatus* status = api.SetTensorElementType(info, type);
  if (status == nullptr) status = api.SetDimensions(info, extents.data(), extents.size());
  if (status == nullptr) status = api.SetSymbolicDimensions(info, symbols.data(), symbols.size());
  if (status == nullptr) status = api.ShapeInferContext_SetOutputTypeShape(context, 0, info);
  api.ReleaseTensorTypeAndShapeInfo(info);
  return status;
}

ElementType input_type(const CustomOp* self, size_t index) {
  switch (index) {
    case 2:  // A
    case 5:  // D
    case 6:  // delta_bias
      return EM_F32;
    case 7:  // order
      return EM_I32;
    default:
      return static_cast<const SelectiveScanOp*>(self)->element_type;
  }
}

SelectiveScanOp::SelectiveScanOp(Provider where, ElementType type, const ApiTable* table, int thread_count)
    : CustomOp{}, provider(where), element_type(type), api(table), threads(thread_count) {
  version = kApiVersion;
  GetName = [](const CustomOp*) { return kOpName; };
  GetExecutionProviderType = [](const CustomOp* self) {
    const bool cuda = static_cast<const SelectiveScanOp*>(self)->provider == Provider::kCuda;
    return cuda ? "CUDAExecutionProvider" : "CPUExecutionProvider";
  };
  GetInputTypeCount = [](const CustomOp*) { return kInputs; };
  GetInputType = input_type;
  GetInputCharacteristic = [](const CustomOp*, size_t) { return kRequired; };
  GetInputMemoryType = [](const CustomOp*, size_t) { return kMemoryDefault; };
  GetOutputTypeCount = [](const CustomOp*) { return size_t{1}; };
  GetOutputType = [](const CustomOp* self, size_t) { return static_cast<const SelectiveScanOp*>(self)->element_type; };
  GetOutputCharacteristic = [](const CustomOp*, size_t) { return kRequired; };
  GetStartVersion = [](const CustomOp*) { return kOpVersion; };
  GetEndVersion = [](const CustomOp*) { return kOpVersion; };
  CreateKernelV2 = create_kernel;
  KernelComputeV2 = where == Provider::kCuda ? compute_on_cuda : compute_on_cpu;
  KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  InferOutputShapeFn = infer_shape;
}

// The op for each provider and element type, for one ONNX Runtime (a process may have loaded several) and one number of
// threads.
struct Registration {
  Registration(const ApiTable* table, int thread_count)
      : api(table),
        threads(thread_count),
        ops{{{Provider::kCpu, EM_F32, api, threads},
             {Provider::kCpu, EM_F16, api, threads},
             {Provider::kCpu, EM_BF16, api, threads},
             {Provider::kCuda, EM_F32, api, threads},
             {Provider::kCuda, EM_F16, api, threads},
             {Provider::kCuda, EM_BF16, api, threads}}} {}

  OrtStatus* create_domain() {
    EM_RETURN_IF_ERROR(api->CreateCustomOpDomain(kDomain, &domain));
    for (const SelectiveScanOp& op : ops) EM_RETURN_IF_ERROR(api->CustomOpDomain_Add(domain, &op));
    return nullptr;
  }

  const ApiTable* const api;
  const int threads;
  std::array<SelectiveScanOp, 6> ops;
  OrtCustomOpDomain* domain = nullptr;
};

// Sessions keep pointers to the domain and its ops, and nobody is told when the last one ends: they are made once,
// shared by all sessions alike, and kept for the life of the process.
OrtStatus* find_or_create(const ApiTable* api, int threads, OrtCustomOpDomain** out) {
  static std::mutex mutex;
  static auto& all = *new std::vector<Registration*>;
  const std::lock_guard<std::mutex> lock(mutex);
  for (const Registration* known : all) {
    if (known->api == api && known->threads == threads) {
      *out = known->domain;
      return nullptr;
    }
  }
  auto* made = new Registration(api, threads);
  EM_RETURN_IF_ERROR(made->create_domain());
  all.push_back(made);
  *out = made->domain;
  return nullptr;
}

OrtStatus* threads_option(const ApiTable& api, const OrtSessionOptions* options, int* threads) {
  int present = 0;
  EM_RETURN_IF_ERROR(api.HasSessionConfigEntry(options, kThreadsOption, &present));
  if (!present) return nullptr;
  char text[16] = "";
  size_t size = sizeof text;
  EM_RETURN_IF_ERROR(api.GetSessionConfigEntry(options, kThreadsOption, text, &size));
  const long number = std::strtol(text, nullptr, 10);
  *threads = number > 0 && number < 4096 ? static_cast<int>(number) : 0;
  return nullptr;
}

}  // namespace
}  // namespace edgemamba::ort

// The entry point that SessionOptions.register_custom_ops_library looks up.
extern "C" EM_API OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const edgemamba::ort::ApiBase* base) {
  using namespace edgemamba::ort;
  const ApiTable* api = base->GetApi(kApiVersion);
  if (api == nullptr) {
    // No table of any version can be had to make a status with: say it, and let the session fail on the unknown op.
    std::fprintf(stderr, "edgemamba: ONNX Runtime %s is too old for SelectiveScan; 1.17 or later is needed\n",
                 base->GetVersionString());
    return nullptr;
  }
  try {
    int threads = 0;
    EM_RETURN_IF_ERROR(threads_option(*api, options, &threads));
    OrtCustomOpDomain* domain = nullptr;
    EM_RETURN_IF_ERROR(find_or_create(api, threads, &domain));
    return api->AddCustomOpDomain(options, domain);
  } catch (const std::bad_alloc&) {
    return api->CreateStatus(kFail, "edgemamba: out of memory");
  }
}
