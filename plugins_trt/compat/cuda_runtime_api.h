// Stands in for CUDA's header of this name where no CUDA toolkit is installed. TensorRT's headers include it for two
// opaque handle types and nothing else (checked for 10.0 to 11.1), and the plugin calls no function of the CUDA
// runtime: its device code is embedded PTX, launched through the driver (kernels/include/edgemamba/scan_cuda.h).
// On the include path only as a last resort, after every real toolkit.
#ifndef EDGEMAMBA_COMPAT_CUDA_RUNTIME_API_H
#define EDGEMAMBA_COMPAT_CUDA_RUNTIME_API_H

typedef struct CUstream_st* cudaStream_t;
typedef struct CUevent_st* cudaEvent_t;

#endif  // EDGEMAMBA_COMPAT_CUDA_RUNTIME_API_H
