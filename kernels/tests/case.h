// One call of the selective scan with memory of its own, in any element type, and the answer by double loops.
#ifndef EDGEMAMBA_TESTS_CASE_H
#define EDGEMAMBA_TESTS_CASE_H

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "edgemamba/scan.h"

struct Extents {
  int64_t B, P, Gu, G, D, N, S;
};

// A tensor that owns its elements; values() rounds trips through the element type, so that references see what kernels
// see.
class Tensor {
 public:
  Tensor() = default;
  Tensor(int32_t dtype, std::vector<int64_t> shape, const std::vector<double>& values);
  em_tensor view() { return {bytes_.empty() ? nullptr : bytes_.data(), shape_.data(), rank(), dtype_}; }
  std::vector<double> values() const;
  int32_t rank() const { return static_cast<int32_t>(shape_.size()); }
  const std::vector<unsigned char>& bytes() const { return bytes_; }

 private:
  int32_t dtype_ = 0;
  std::vector<int64_t> shape_;
  std::vector<unsigned char> bytes_;
};

class Case {
 public:
  // delta, before softplus, is normal around `delta_mean` with `delta_spread`; A is -exp(normal) * `A_scale`.
  Case(const Extents& extents, int32_t dtype, unsigned seed, double delta_mean = -1, double delta_spread = 1,
       double A_scale = 1, bool softplus = true);

  em_scan_inputs inputs();
  // Both return the status; the message is in `message`.
  int forward(const em_executor* executor = nullptr);
  int backward(const em_executor* executor = nullptr);
  // The same pair, the backward call with the states that the forward call keeps. Not for float64.
  int forward_and_backward(const em_executor* executor = nullptr);
  std::vector<double> reference_forward() const;
  // The seven gradients in the order of the inputs.
  std::vector<std::vector<double>> reference_backward() const;
  std::string name() const;

  Extents extents;
  int32_t dtype;
  bool softplus;
  Tensor u, delta, A, B, C, D, delta_bias, y, dy, checkpoints;
  std::vector<int32_t> order;
  std::vector<Tensor> gradients;
  char message[256] = "";

 private:
  int backward(const em_tensor* kept, const em_executor* executor);

  std::vector<int64_t> order_shape_;
};

#endif  // EDGEMAMBA_TESTS_CASE_H
