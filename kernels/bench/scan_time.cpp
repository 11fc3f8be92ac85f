// Least time of one scan through the C ABI: no Python between the clock and the kernel.
//   scan_time P D G THREADS SECONDS      (batch 1, N = 16, float32; prints milliseconds)
// Values as a trained layer has them: A = -1..-N, steps log-uniform between 0.001 and 0.1 before what the token adds.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "edgemamba/scan.h"

int main(int count, char** arguments) {
  if (count != 6) {
    std::fprintf(stderr, "usage: scan_time P D G THREADS SECONDS\n");
    return 2;
  }
  const int64_t P = std::atoll(arguments[1]), D = std::atoll(arguments[2]), G = std::atoll(arguments[3]), N = 16;
  const int threads = std::atoi(arguments[4]);
  const double seconds = std::atof(arguments[5]);

  std::mt19937 generator(0);
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> log_dt(std::log(1e-3f), std::log(1e-1f));
  const auto fill = [](int64_t size, auto&& value) {
    std::vector<float> values(static_cast<size_t>(size));
    for (auto& each : values) each = value();
    return values;
  };
  auto u = fill(P * D, [&] { return normal(generator); });
  auto delta = fill(P * G * D, [&] { return 0.5f * normal(generator); });
  auto B = fill(P * G * N, [&] { return normal(generator); });
  auto C = fill(P * G * N, [&] { return normal(generator); });
  int64_t n = 0;
  auto A = fill(G * D * N, [&] { return -static_cast<float>(n++ % N + 1); });
  auto skip = fill(G * D, [] { return 1.0f; });
  auto bias = fill(G * D, [&] {
    const float dt = std::exp(log_dt(generator));
    return dt + std::log(-std::expm1(-dt));
  });
  std::vector<int32_t> order(static_cast<size_t>(G * P));
  for (int64_t g = 0; g < G; ++g) {
    for (int64_t s = 0; s < P; ++s) order[static_cast<size_t>(g * P + s)] = static_cast<int32_t>(g % 2 ? P - 1 - s : s);
  }
  std::vector<float> y(static_cast<size_t>(P * D));

  const int64_t u_shape[] = {1, P, 1, D}, delta_shape[] = {1, P, G, D}, state_shape[] = {1, P, G, N};
  const int64_t A_shape[] = {G, D, N}, weight_shape[] = {G, D}, order_shape[] = {G, P}, y_shape[] = {1, P, D};
  const em_scan_inputs inputs = {{u.data(), u_shape, 4, EM_F32},       {delta.data(), delta_shape, 4, EM_F32},
                                 {A.data(), A_shape, 3, EM_F32},       {B.data(), state_shape, 4, EM_F32},
                                 {C.data(), state_shape, 4, EM_F32},   {skip.data(), weight_shape, 2, EM_F32},
                                 {bias.data(), weight_shape, 2, EM_F32}, {order.data(), order_shape, 2, EM_I32},
                                 1};
  const em_tensor out = {y.data(), y_shape, 3, EM_F32};
  const em_executor executor = {threads, nullptr, nullptr};

  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  double best = 1e9;
  do {
    const auto start = Clock::now();
    char message[256];
    if (em_selective_scan(&inputs, &out, &executor, message, sizeof message) != EM_OK) {
      std::fprintf(stderr, "%s\n", message);
      return 1;
    }
    best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
  } while (Clock::now() < end);
  std::printf("%.6f\n", best * 1e3);
}
