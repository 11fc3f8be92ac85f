/* The selective scan behind one plain C ABI: ../shared design, section 2 (operator contract).
 *
 *   dt  = softplus(delta + delta_bias)                 (identity above 20; or no softplus)
 *   h_s = exp(dt_p * A) * h_{s-1} + dt_p * B_p * u_p,  p = order[g, s],  h_{-1} = 0
 *   y_p = sum over the directions g that visit p of ( <C_p, h_s> + D * u_p );  0 where none does
 *
 * Every tensor is contiguous, row-major, in host memory. T is float32, float16, bfloat16 (arithmetic and state in
 * float32) or float64 (everything, A/D/delta_bias included, in float64: for gradient checks and golden vectors).
 *
 *   u          T    (B, P, Gu, D)   Gu = 1 (shared by all directions) or G
 *   delta      T    (B, P, G, D)
 *   A          f32  (G, D, N)
 *   B, C       T    (B, P, G, N)
 *   D          f32  (G, D)
 *   delta_bias f32  (G, D)
 *   order      i32  (G, S)          S <= P; no position twice in one direction
 *   y          T    (B, P, D)
 *
 * All functions validate what they are given, and are the ONLY place where the arguments are validated: an adapter
 * passes on what it received and shows the message, which names the argument. They never throw across the boundary.
 */
#ifndef EDGEMAMBA_SCAN_H
#define EDGEMAMBA_SCAN_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define EM_API __declspec(dllexport)
#else
#define EM_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define EM_ABI_VERSION 2

/* Between two checkpoints of the states. */
#define EM_CHECKPOINT_STEPS 32

/* The numbers of ONNX's TensorProto.DataType, so that no adapter needs a table of its own. */
enum em_dtype { EM_F32 = 1, EM_I32 = 6, EM_F16 = 10, EM_F64 = 11, EM_BF16 = 16 };

enum em_status { EM_OK = 0, EM_INVALID_ARGUMENT = 1, EM_OUT_OF_MEMORY = 2, EM_INTERNAL = 3 };

typedef struct em_tensor {
  void* data;           /* may be NULL only where the tensor has no elements */
  const int64_t* shape; /* `rank` extents */
  int32_t rank;
  int32_t dtype; /* enum em_dtype */
} em_tensor;

typedef struct em_scan_inputs {
  em_tensor u, delta, A, B, C, D, delta_bias, order;
  int32_t delta_softplus; /* 0 or 1 */
} em_scan_inputs;

/* Where the work runs. NULL, or parallel_for == NULL: std::thread, `threads` of them (0: one for each core),
 * fewer for little work. Otherwise parallel_for(context, task, data, count) must call task(data, i) once for each
 * 0 <= i < count, on any threads, and return 0 once all have returned; it is not called where one thread is enough. */
typedef struct em_executor {
  int32_t threads;
  void* context;
  int (*parallel_for)(void* context, void (*task)(void* data, size_t index), void* data, size_t count);
} em_executor;

/* An OpenMP library of the process as an executor's threads: parallel_for = em_openmp_parallel_for, context = one of these.
 * A program whose own loops run on OpenMP's threads (PyTorch's do) then has one set of threads, not two that wait for work
 * on the same cores. */
typedef struct em_openmp {
  /* GOMP_parallel of that library: GNU's has it, LLVM's and Intel's too. */
  void (*parallel)(void (*body)(void* data), void* data, unsigned threads, unsigned flags);
  uint32_t threads;
} em_openmp;

EM_API int em_openmp_parallel_for(void* openmp, void (*task)(void* data, size_t index), void* data, size_t count);

/* Gradients in the dtype and shape of their inputs; an entry whose data is NULL is not wanted and not computed. */
typedef struct em_scan_gradients {
  em_tensor u, delta, A, B, C, D, delta_bias;
} em_scan_gradients;

EM_API int em_abi_version(void);

/* Writes every element of y. On failure returns an em_status, leaves y unspecified and, where message is not NULL,
 * writes a NUL-terminated line of at most message_size bytes that names the argument and what is wrong with it. */
EM_API int em_selective_scan(const em_scan_inputs* inputs, const em_tensor* y, const em_executor* executor,
                             char* message, size_t message_size);

/* The same, and keeps for the backward call the states before the steps 0, EM_CHECKPOINT_STEPS, 2 EM_CHECKPOINT_STEPS...:
 * (B, ceil(S / EM_CHECKPOINT_STEPS), G, N, D), float32. Not for float64. */
EM_API int em_selective_scan_checkpointed(const em_scan_inputs* inputs, const em_tensor* y,
                                          const em_tensor* checkpoints, const em_executor* executor, char* message,
                                          size_t message_size);

/* Gradients of sum(y * dy). `checkpoints` as the forward call left them, or NULL: then a first walk over the steps finds
 * them again (always so for float64, there every sqrt(S)-th), and a running task holds those of its channels. The states
 * between two are recomputed. The sums are added in an order that does not depend on the threads: the same call gives the
 * same bits on any number of them. */
EM_API int em_selective_scan_backward(const em_scan_inputs* inputs, const em_tensor* dy, const em_tensor* checkpoints,
                                      const em_scan_gradients* gradients, const em_executor* executor, char* message,
                                      size_t message_size);

/* The instruction set in use: "scalar", "x86-64-v3", "x86-64-v4" or "neon". EDGEMAMBA_ISA in the environment forces one
 * of those that this machine can run. em_isa_list: all that it can run, best first, separated by commas. */
EM_API const char* em_isa(void);
EM_API const char* em_isa_list(void);

#ifdef __cplusplus
}
#endif

#endif /* EDGEMAMBA_SCAN_H */
