// The part of ONNX Runtime's C ABI that a custom op needs, written from its published facts so that building needs
// no ONNX Runtime headers and one binary runs on every release since 1.17.
//
// OrtApi is a table of function pointers to which releases only ever append: a slot number is the position of a
// function in `struct OrtApi` of onnxruntime_c_api.h, and never changes. tests/runtime/test_ort_abi.py compares each
// constant of `Slot` with the official header wherever one is installed.
#ifndef EDGEMAMBA_ORT_ONNXRUNTIME_ABI_H
#define EDGEMAMBA_ORT_ONNXRUNTIME_ABI_H

#include <stddef.h>
#include <stdint.h>

struct OrtStatus;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtValue;
struct OrtTensorTypeAndShapeInfo;
struct OrtShapeInferContext;

namespace edgemamba::ort {

// The lowest API version whose table has all slots below. Asking for no more keeps old releases working.
constexpr uint32_t kApiVersion = 17;

enum Slot {
  kCreateStatus = 0,
  kCreateCustomOpDomain = 26,
  kCustomOpDomain_Add = 27,
  kAddCustomOpDomain = 28,
  kGetTensorMutableData = 51,
  kCreateTensorTypeAndShapeInfo = 57,
  kSetTensorElementType = 58,
  kSetDimensions = 59,
  kGetTensorElementType = 60,
  kGetDimensionsCount = 61,
  kGetDimensions = 62,
  kGetSymbolicDimensions = 63,
  kGetTensorTypeAndShape = 65,
  kKernelInfoGetAttribute_int64 = 86,
  kKernelContext_GetInput = 90,
  kKernelContext_GetOutput = 91,
  kReleaseStatus = 93,
  kReleaseTensorTypeAndShapeInfo = 99,
  kKernelContext_GetGPUComputeStream = 193,
  kHasSessionConfigEntry = 237,
  kGetSessionConfigEntry = 238,
  kShapeInferContext_GetInputTypeShape = 268,
  kShapeInferContext_SetOutputTypeShape = 270,
  kSetSymbolicDimensions = 271,
  kKernelContext_ParallelFor = 274,
};

// OrtErrorCode
enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };

// ONNXTensorElementDataType: the numbers of TensorProto.DataType, as in edgemamba/scan.h.
using ElementType = int32_t;

// OrtCustomOpInputOutputCharacteristic, OrtMemType
enum Characteristic : int { kRequired = 0 };
enum MemoryType : int { kMemoryDefault = 0 };

struct ApiTable;

// OrtApiBase
struct ApiBase {
  const ApiTable* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

// OrtCustomOp, up to the members of version 17.
struct CustomOp {
  uint32_t version;
  void* (*CreateKernel)(const CustomOp*, const ApiTable*, const OrtKernelInfo*);  // before version 16
  const char* (*GetName)(const CustomOp*);
  const char* (*GetExecutionProviderType)(const CustomOp*);
  ElementType (*GetInputType)(const CustomOp*, size_t);
  size_t (*GetInputTypeCount)(const CustomOp*);
  ElementType (*GetOutputType)(const CustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const CustomOp*);
  void (*KernelCompute)(void*, OrtKernelContext*);  // before version 16
  void (*KernelDestroy)(void*);
  Characteristic (*GetInputCharacteristic)(const CustomOp*, size_t);
  Characteristic (*GetOutputCharacteristic)(const CustomOp*, size_t);
  MemoryType (*GetInputMemoryType)(const CustomOp*, size_t);
  int (*GetVariadicInputMinArity)(const CustomOp*);
  int (*GetVariadicInputHomogeneity)(const CustomOp*);
  int (*GetVariadicOutputMinArity)(const CustomOp*);
  int (*GetVariadicOutputHomogeneity)(const CustomOp*);
  OrtStatus* (*CreateKernelV2)(const CustomOp*, const ApiTable*, const OrtKernelInfo*, void** kernel);
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const CustomOp*, OrtShapeInferContext*);
  int (*GetStartVersion)(const CustomOp*);
  int (*GetEndVersion)(const CustomOp*);
  // Version 18. Left NULL, and present so that no release can read past the end of the struct.
  size_t (*GetMayInplace)(int** input_index, int** output_index);
  void (*ReleaseMayInplace)(int* input_index, int* output_index);
  size_t (*GetAliasMap)(int** input_index, int** output_index);
  void (*ReleaseAliasMap)(int* input_index, int* output_index);
};

// The table with the C signature of each function that is used. What may fail returns NULL or a status to release.
struct ApiTable {
  OrtStatus* CreateStatus(ErrorCode code, const char* message) const {
    return call<OrtStatus*, int, const char*>(kCreateStatus, code, message);
  }
  void ReleaseStatus(OrtStatus* status) const { call<void, OrtStatus*>(kReleaseStatus, status); }

  OrtStatus* CreateCustomOpDomain(const char* name, OrtCustomOpDomain** out) const {
    return call<OrtStatus*, const char*, OrtCustomOpDomain**>(kCreateCustomOpDomain, name, out);
  }
  OrtStatus* CustomOpDomain_Add(OrtCustomOpDomain* domain, const CustomOp* op) const {
    return call<OrtStatus*, OrtCustomOpDomain*, const CustomOp*>(kCustomOpDomain_Add, domain, op);
  }
  OrtStatus* AddCustomOpDomain(OrtSessionOptions* options, OrtCustomOpDomain* domain) const {
    return call<OrtStatus*, OrtSessionOptions*, OrtCustomOpDomain*>(kAddCustomOpDomain, options, domain);
  }
  OrtStatus* HasSessionConfigEntry(const OrtSessionOptions* options, const char* key, int* out) const {
    return call<OrtStatus*, const OrtSessionOptions*, const char*, int*>(kHasSessionConfigEntry, options, key, out);
  }
  // `size` is in and out, and counts the terminating NUL.
  OrtStatus* GetSessionConfigEntry(const OrtSessionOptions* options, const char* key, char* value, size_t* size) const {
    return call<OrtStatus*, const OrtSessionOptions*, const char*, char*, size_t*>(kGetSessionConfigEntry, options, key,
                                                                                  value, size);
  }

  OrtStatus* GetTensorMutableData(OrtValue* value, void** out) const {
    return call<OrtStatus*, OrtValue*, void**>(kGetTensorMutableData, value, out);
  }
  OrtStatus* GetTensorTypeAndShape(const OrtValue* value, OrtTensorTypeAndShapeInfo** out) const {
    return call<OrtStatus*, const OrtValue*, OrtTensorTypeAndShapeInfo**>(kGetTensorTypeAndShape, value, out);
  }
  OrtStatus* CreateTensorTypeAndShapeInfo(OrtTensorTypeAndShapeInfo** out) const {
    return call<OrtStatus*, OrtTensorTypeAndShapeInfo**>(kCreateTensorTypeAndShapeInfo, out);
  }
  void ReleaseTensorTypeAndShapeInfo(OrtTensorTypeAndShapeInfo* info) const {
    call<void, OrtTensorTypeAndShapeInfo*>(kReleaseTensorTypeAndShapeInfo, info);
  }
  OrtStatus* GetTensorElementType(const OrtTensorTypeAndShapeInfo* info, ElementType* out) const {
    return call<OrtStatus*, const OrtTensorTypeAndShapeInfo*, ElementType*>(kGetTensorElementType, info, out);
  }
  OrtStatus* GetDimensionsCount(const OrtTensorTypeAndShapeInfo* info, size_t* out) const {
    return call<OrtStatus*, const OrtTensorTypeAndShapeInfo*, size_t*>(kGetDimensionsCount, info, out);
  }
  OrtStatus* GetDimensions(const OrtTensorTypeAndShapeInfo* info, int64_t* out, size_t rank) const {
    return call<OrtStatus*, const OrtTensorTypeAndShapeInfo*, int64_t*, size_t>(kGetDimensions, info, out, rank);
  }
  // The names stay owned by `info`; "" where a dimension has none.
  OrtStatus* GetSymbolicDimensions(const OrtTensorTypeAndShapeInfo* info, const char** out, size_t rank) const {
    return call<OrtStatus*, const OrtTensorTypeAndShapeInfo*, const char**, size_t>(kGetSymbolicDimensions, info, out,
                                                                                   rank);
  }
  OrtStatus* SetTensorElementType(OrtTensorTypeAndShapeInfo* info, ElementType type) const {
    return call<OrtStatus*, OrtTensorTypeAndShapeInfo*, ElementType>(kSetTensorElementType, info, type);
  }
  OrtStatus* SetDimensions(OrtTensorTypeAndShapeInfo* info, const int64_t* extents, size_t rank) const {
    return call<OrtStatus*, OrtTensorTypeAndShapeInfo*, const int64_t*, size_t>(kSetDimensions, info, extents, rank);
  }
  OrtStatus* SetSymbolicDimensions(OrtTensorTypeAndShapeInfo* info, const char** names, size_t rank) const {
    return call<OrtStatus*, OrtTensorTypeAndShapeInfo*, const char**, size_t>(kSetSymbolicDimensions, info, names,
                                                                             rank);
  }

  OrtStatus* KernelInfoGetAttribute_int64(const OrtKernelInfo* info, const char* name, int64_t* out) const {
    return call<OrtStatus*, const OrtKernelInfo*, const char*, int64_t*>(kKernelInfoGetAttribute_int64, info, name,
                                                                        out);
  }
  OrtStatus* KernelContext_GetInput(const OrtKernelContext* context, size_t index, const OrtValue** out) const {
    return call<OrtStatus*, const OrtKernelContext*, size_t, const OrtValue**>(kKernelContext_GetInput, context, index,
                                                                              out);
  }
  OrtStatus* KernelContext_GetOutput(OrtKernelContext* context, size_t index, const int64_t* shape, size_t rank,
                                     OrtValue** out) const {
    return call<OrtStatus*, OrtKernelContext*, size_t, const int64_t*, size_t, OrtValue**>(
        kKernelContext_GetOutput, context, index, shape, rank, out);
  }
  // The CUstream of the provider that runs the kernel; NULL: the default stream, or a provider that has none.
  OrtStatus* KernelContext_GetGPUComputeStream(const OrtKernelContext* context, void** out) const {
    return call<OrtStatus*, const OrtKernelContext*, void**>(kKernelContext_GetGPUComputeStream, context, out);
  }
  // Calls task(data, i) for 0 <= i < total on the session's intra-op threads, in `batches` pieces (0: one a thread).
  OrtStatus* KernelContext_ParallelFor(const OrtKernelContext* context, void (*task)(void*, size_t), size_t total,
                                       size_t batches, void* data) const {
    return call<OrtStatus*, const OrtKernelContext*, void (*)(void*, size_t), size_t, size_t, void*>(
        kKernelContext_ParallelFor, context, task, total, batches, data);
  }
  // The info is borrowed: not to be released.
  OrtStatus* ShapeInferContext_GetInputTypeShape(const OrtShapeInferContext* context, size_t index,
                                                 OrtTensorTypeAndShapeInfo** out) const {
    return call<OrtStatus*, const OrtShapeInferContext*, size_t, OrtTensorTypeAndShapeInfo**>(
        kShapeInferContext_GetInputTypeShape, context, index, out);
  }
  OrtStatus* ShapeInferContext_SetOutputTypeShape(const OrtShapeInferContext* context, size_t index,
                                                  const OrtTensorTypeAndShapeInfo* info) const {
    return call<OrtStatus*, const OrtShapeInferContext*, size_t, const OrtTensorTypeAndShapeInfo*>(
        kShapeInferContext_SetOutputTypeShape, context, index, info);
  }

 private:
  template <typename Result, typename... Arguments>
  Result call(Slot slot, Arguments... arguments) const {
    using Function = Result (*)(Arguments...);
    return reinterpret_cast<Function const*>(this)[slot](arguments...);
  }
};

}  // namespace edgemamba::ort

#endif  // EDGEMAMBA_ORT_ONNXRUNTIME_ABI_H
