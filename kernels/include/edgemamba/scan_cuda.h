/* The selective scan of scan.h on an NVIDIA GPU, forward only, behind a plain C ABI.
 *
 * The driver is reached by dlopen("libcuda.so.1") and the device code travels as PTX inside this library: nothing of
 * CUDA is needed to compile or to load it, and on a machine without a GPU every call below says so. The arguments are
 * those of em_selective_scan with these differences:
 *   - every tensor's data is a device address of the current context;
 *   - T is float32, float16 or bfloat16, and N is at most EM_CUDA_MAX_STATES;
 *   - the contents of `order` are not read on the host. A step whose position is outside 0..P-1 is left out, as if the
 *     direction were one step shorter; a position visited twice in one direction holds either step's value.
 *
 * The sums are added in an order that does not depend on timing: the same call on the same device gives the same bits.
 * Every function may be called from any thread.
 */
#ifndef EDGEMAMBA_SCAN_CUDA_H
#define EDGEMAMBA_SCAN_CUDA_H

#include "edgemamba/scan.h"

#ifdef __cplusplus
extern "C" {
#endif

#define EM_CUDA_MAX_STATES 64

/* AUTO takes the cheaper of the two by a rule of shape and multiprocessors. CHUNKED cuts each direction's steps into
 * chunks that run side by side, at nearly twice the arithmetic: for few batch elements and channels. */
enum em_cuda_algorithm { EM_CUDA_AUTO = 0, EM_CUDA_SEQUENTIAL = 1, EM_CUDA_CHUNKED = 2 };

/* Beside those of enum em_status: no driver, no device or no current context; an error that the driver reported. */
enum em_cuda_status { EM_CUDA_UNAVAILABLE = 16, EM_CUDA_ERROR = 17 };

/* Bytes of device memory that em_cuda_selective_scan needs for this shape: sums per direction where G > 1, states per
 * chunk in the chunked form; 0 is possible. `dtype` is that of u. `multiprocessors` is the device's count, which decides
 * the number of chunks (0: a middling device, 64). Host arithmetic only: no driver is needed. SIZE_MAX where the
 * operator has no such shape, dtype or algorithm, or where the bytes cannot be counted. */
EM_API size_t em_cuda_scan_workspace(int64_t B, int64_t P, int64_t D, int64_t G, int64_t N, int64_t S, int32_t dtype,
                                     int32_t algorithm, int32_t multiprocessors);

/* What AUTO takes for this shape: EM_CUDA_SEQUENTIAL or EM_CUDA_CHUNKED. 0 where there is no such shape. */
EM_API int32_t em_cuda_scan_algorithm(int64_t B, int64_t P, int64_t D, int64_t G, int64_t N, int64_t S, int32_t dtype,
                                      int32_t multiprocessors);

/* EM_OK where libcuda.so.1 loads and finds a device that can run the embedded PTX (compute capability 7.5 or newer);
 * else EM_CUDA_UNAVAILABLE and, in `message`, why. Needs no context. */
EM_API int em_cuda_available(char* message, size_t message_size);

/* Loads the device code into the current context, once; later calls return at once. The driver compiles the PTX for the
 * device here (seconds, then cached by the driver on disk), so call it outside of what is timed and before a stream is
 * captured: else the first scan of a context does it. */
EM_API int em_cuda_prepare(char* message, size_t message_size);

/* Enqueues the scan on `stream` (a CUstream; NULL: the default stream) in the current context and returns: no
 * synchronisation with the host, no allocation, and capture into a CUDA graph is fine after em_cuda_prepare.
 * `workspace`: at least 16-byte aligned device memory, unused once the work enqueued here has run. With fewer bytes than
 * em_cuda_scan_workspace gives for this device, fewer chunks are used, and AUTO falls back to the sequential form;
 * too few even for that is EM_INVALID_ARGUMENT with the bytes in the message. On failure y is unspecified. */
EM_API int em_cuda_selective_scan(const em_scan_inputs* inputs, const em_tensor* y, void* workspace,
                                  size_t workspace_bytes, int32_t algorithm, void* stream, char* message,
                                  size_t message_size);

#ifdef __cplusplus
}
#endif

#endif /* EDGEMAMBA_SCAN_CUDA_H */
