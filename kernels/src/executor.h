// Where the work runs: the caller's pool (ONNX Runtime's), or a small pool of our own.
#ifndef EDGEMAMBA_SRC_EXECUTOR_H
#define EDGEMAMBA_SRC_EXECUTOR_H

#include <stddef.h>

#include "edgemamba/scan.h"

namespace edgemamba {

using Task = void (*)(void* data, size_t index);

// How many threads a call may use: what the caller asked for, or all cores this process may run on. At least 1.
int thread_count(const em_executor* executor);

// Calls task(data, i) once for each i < count and returns when all have returned. False where the caller's
// parallel_for reported a failure.
bool parallel_for(const em_executor* executor, int threads, Task task, void* data, size_t count);

// The same for any callable, kept on the caller's stack.
template <typename Function>
bool parallel_for(const em_executor* executor, int threads, size_t count, Function& function) {
  const Task task = [](void* data, size_t index) { (*static_cast<Function*>(data))(index); };
  return parallel_for(executor, threads, task, &function, count);
}

}  // namespace edgemamba

#endif  // EDGEMAMBA_SRC_EXECUTOR_H
