#include "cuda_arguments.h"

namespace edgemamba {
namespace {

// Would read_inputs, given a good delta, refuse `order` by its shape alone?
bool is_refused_by_shape(const em_tensor& order, const em_tensor& delta) {
  if (order.dtype != EM_I32 || order.rank != 2 || order.shape == nullptr) return true;
  if (order.shape[0] < 0 || order.shape[1] < 0) return true;
  if (order.data == nullptr && order.shape[0] > 0 && order.shape[1] > 0) return true;
  return delta.rank == 4 && delta.shape != nullptr && order.shape[1] > delta.shape[1];
}

}  // namespace

bool read_device_inputs(const em_scan_inputs* inputs, Problem* problem, const Message& message) {
  // A wrong shape of `order` is refused before its contents are looked at; a right one is shown as having no steps.
  if (inputs == nullptr || is_refused_by_shape(inputs->order, inputs->delta)) {
    return read_inputs(inputs, problem, message);
  }
  em_scan_inputs shown = *inputs;
  const int64_t no_steps[2] = {inputs->order.shape[0], 0};
  shown.order.shape = no_steps;
  shown.order.data = nullptr;
  if (!read_inputs(&shown, problem, message)) return false;
  problem->steps = inputs->order.shape[1];
  problem->order = static_cast<const int32_t*>(inputs->order.data);
  return true;
}

CudaShape cuda_shape(const Problem& p) {
  return {p.batch, p.positions, p.channels, p.directions, p.states, p.steps, p.dtype};
}

}  // namespace edgemamba
