#include "case.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "half.h"

using namespace edgemamba;

namespace {

template <typename T>
void append(double value, std::vector<unsigned char>* bytes) {
  T stored;
  if constexpr (std::is_same_v<T, double>) {
    stored = value;
  } else {
    from_float(static_cast<float>(value), &stored);
  }
  const auto* raw = reinterpret_cast<const unsigned char*>(&stored);
  bytes->insert(bytes->end(), raw, raw + sizeof stored);
}

template <typename T>
std::vector<double> read(const std::vector<unsigned char>& bytes) {
  std::vector<double> out(bytes.size() / sizeof(T));
  for (size_t i = 0; i < out.size(); ++i) {
    T stored;
    std::memcpy(&stored, &bytes[i * sizeof stored], sizeof stored);
    if constexpr (std::is_same_v<T, double>) {
      out[i] = stored;
    } else {
      out[i] = to_float(stored);
    }
  }
  return out;
}

int64_t product(const std::vector<int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<int64_t>());
}

// The walk of one (batch element, direction, channel) in double.
struct Walk {
  Walk(const Case& c)
      : e(c.extents),
        u(c.u.values()),
        delta(c.delta.values()),
        A(c.A.values()),
        B(c.B.values()),
        C(c.C.values()),
        D(c.D.values()),
        bias(c.delta_bias.values()),
        softplus(c.softplus) {}

  size_t u_at(int64_t b, int64_t p, int64_t g, int64_t d) const {
    return static_cast<size_t>(((b * e.P + p) * e.Gu + (e.Gu == 1 ? 0 : g)) * e.D + d);
  }
  size_t delta_at(int64_t b, int64_t p, int64_t g, int64_t d) const {
    return static_cast<size_t>(((b * e.P + p) * e.G + g) * e.D + d);
  }
  size_t state_at(int64_t b, int64_t p, int64_t g, int64_t n) const {
    return static_cast<size_t>(((b * e.P + p) * e.G + g) * e.N + n);
  }
  double dt(size_t at, int64_t weight) const {
    const double x = delta[at] + bias[static_cast<size_t>(weight)];
    return softplus && x <= 20 ? std::log1p(std::exp(x)) : x;
  }
  double slope(size_t at, int64_t weight) const {
    const double x = delta[at] + bias[static_cast<size_t>(weight)];
    return softplus && x <= 20 ? 1 / (1 + std::exp(-x)) : 1;
  }

  const Extents e;
  std::vector<double> u, delta, A, B, C, D, bias;
  const bool softplus;
};

}  // namespace

Tensor::Tensor(int32_t dtype, std::vector<int64_t> shape, const std::vector<double>& values)
    : dtype_(dtype), shape_(std::move(shape)) {
  for (double value : values) {
    switch (dtype) {
      case EM_F16: append<Float16>(value, &bytes_); break;
      case EM_BF16: append<BFloat16>(value, &bytes_); break;
      case EM_F64: append<double>(value, &bytes_); break;
      default: append<float>(value, &bytes_);
    }
  }
}

std::vector<double> Tensor::values() const {
  switch (dtype_) {
    case EM_F16: return read<Float16>(bytes_);
    case EM_BF16: return read<BFloat16>(bytes_);
    case EM_F64: return read<double>(bytes_);
    default: return read<float>(bytes_);
  }
}

Case::Case(const Extents& e, int32_t element, unsigned seed, double delta_mean, double delta_spread, double A_scale,
           bool with_softplus)
    : extents(e), dtype(element), softplus(with_softplus), order_shape_{e.G, e.S} {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  const int32_t parameter = dtype == EM_F64 ? EM_F64 : EM_F32;
  const auto make = [&](int32_t type, std::vector<int64_t> shape, double mean = 0, double spread = 1) {
    std::vector<double> values(static_cast<size_t>(product(shape)));
    for (double& value : values) value = mean + spread * normal(generator);
    return Tensor(type, std::move(shape), values);
  };
  u = make(dtype, {e.B, e.P, e.Gu, e.D});
  delta = make(dtype, {e.B, e.P, e.G, e.D}, delta_mean, delta_spread);
  std::vector<double> decay(static_cast<size_t>(e.G * e.D * e.N));
  for (double& value : decay) value = -std::exp(normal(generator)) * A_scale;
  A = Tensor(parameter, {e.G, e.D, e.N}, decay);
  B = make(dtype, {e.B, e.P, e.G, e.N});
  C = make(dtype, {e.B, e.P, e.G, e.N});
  D = make(parameter, {e.G, e.D});
  delta_bias = make(parameter, {e.G, e.D}, 0, softplus ? 0.5 : 0);
  y = make(dtype, {e.B, e.P, e.D});  // not zeroed: every element must be written
  dy = make(dtype, {e.B, e.P, e.D});
  const int64_t chunks = (e.S + EM_CHECKPOINT_STEPS - 1) / EM_CHECKPOINT_STEPS;
  checkpoints = make(EM_F32, {e.B, chunks, e.G, e.N, e.D});
  for (int64_t g = 0; g < e.G; ++g) {
    std::vector<int32_t> positions(static_cast<size_t>(e.P));
    std::iota(positions.begin(), positions.end(), 0);
    std::shuffle(positions.begin(), positions.end(), generator);
    order.insert(order.end(), positions.begin(), positions.begin() + e.S);
  }
  gradients = {make(dtype, {e.B, e.P, e.Gu, e.D}), make(dtype, {e.B, e.P, e.G, e.D}), make(parameter, {e.G, e.D, e.N}),
               make(dtype, {e.B, e.P, e.G, e.N}),  make(dtype, {e.B, e.P, e.G, e.N}), make(parameter, {e.G, e.D}),
               make(parameter, {e.G, e.D})};
}

em_scan_inputs Case::inputs() {
  return {u.view(),          delta.view(),
          A.view(),          B.view(),
          C.view(),          D.view(),
          delta_bias.view(), {order.empty() ? nullptr : order.data(), order_shape_.data(), 2, EM_I32},
          softplus};
}

int Case::forward(const em_executor* executor) {
  const em_scan_inputs in = inputs();
  const em_tensor out = y.view();
  return em_selective_scan(&in, &out, executor, message, sizeof message);
}

int Case::backward(const em_executor* executor) { return backward(nullptr, executor); }

int Case::forward_and_backward(const em_executor* executor) {
  const em_scan_inputs in = inputs();
  const em_tensor out = y.view(), kept = checkpoints.view();
  const int status = em_selective_scan_checkpointed(&in, &out, &kept, executor, message, sizeof message);
  return status == EM_OK ? backward(&kept, executor) : status;
}

int Case::backward(const em_tensor* kept, const em_executor* executor) {
  const em_scan_inputs in = inputs();
  const em_tensor upstream = dy.view();
  const em_scan_gradients out = {gradients[0].view(), gradients[1].view(), gradients[2].view(), gradients[3].view(),
                                 gradients[4].view(), gradients[5].view(), gradients[6].view()};
  return em_selective_scan_backward(&in, &upstream, kept, &out, executor, message, sizeof message);
}

std::vector<double> Case::reference_forward() const {
  const Walk w(*this);
  const Extents& e = extents;
  std::vector<double> out(static_cast<size_t>(e.B * e.P * e.D), 0.0);
  for (int64_t b = 0; b < e.B; ++b) {
    for (int64_t g = 0; g < e.G; ++g) {
      for (int64_t d = 0; d < e.D; ++d) {
        std::vector<double> h(static_cast<size_t>(e.N), 0.0);
        for (int64_t s = 0; s < e.S; ++s) {
          const int64_t p = order[static_cast<size_t>(g * e.S + s)];
          const double dt = w.dt(w.delta_at(b, p, g, d), g * e.D + d), x = w.u[w.u_at(b, p, g, d)];
          double sum = w.D[static_cast<size_t>(g * e.D + d)] * x;
          for (int64_t n = 0; n < e.N; ++n) {
            double& state = h[static_cast<size_t>(n)];
            const double a = w.A[static_cast<size_t>((g * e.D + d) * e.N + n)];
            state = std::exp(dt * a) * state + dt * w.B[w.state_at(b, p, g, n)] * x;
            sum += w.C[w.state_at(b, p, g, n)] * state;
          }
          out[static_cast<size_t>((b * e.P + p) * e.D + d)] += sum;
        }
      }
    }
  }
  return out;
}

std::vector<std::vector<double>> Case::reference_backward() const {
  const Walk w(*this);
  const Extents& e = extents;
  const std::vector<double> upstream = dy.values();
  std::vector<std::vector<double>> out = {std::vector<double>(w.u.size()),   std::vector<double>(w.delta.size()),
                                          std::vector<double>(w.A.size()),   std::vector<double>(w.B.size()),
                                          std::vector<double>(w.C.size()),   std::vector<double>(w.D.size()),
                                          std::vector<double>(w.bias.size())};
  for (int64_t b = 0; b < e.B; ++b) {
    for (int64_t g = 0; g < e.G; ++g) {
      for (int64_t d = 0; d < e.D; ++d) {
        const int64_t weight = g * e.D + d;
        std::vector<double> h(static_cast<size_t>((e.S + 1) * e.N), 0.0), grad(static_cast<size_t>(e.N), 0.0);
        for (int64_t s = 0; s < e.S; ++s) {
          const int64_t p = order[static_cast<size_t>(g * e.S + s)];
          const double dt = w.dt(w.delta_at(b, p, g, d), weight), x = w.u[w.u_at(b, p, g, d)];
          for (int64_t n = 0; n < e.N; ++n) {
            h[static_cast<size_t>((s + 1) * e.N + n)] =
                std::exp(dt * w.A[static_cast<size_t>(weight * e.N + n)]) * h[static_cast<size_t>(s * e.N + n)] +
                dt * w.B[w.state_at(b, p, g, n)] * x;
          }
        }
        for (int64_t s = e.S - 1; s >= 0; --s) {
          const int64_t p = order[static_cast<size_t>(g * e.S + s)];
          const size_t at = w.delta_at(b, p, g, d);
          const double dt = w.dt(at, weight), x = w.u[w.u_at(b, p, g, d)];
          const double dout = upstream[static_cast<size_t>((b * e.P + p) * e.D + d)];
          double ddt = 0, du = w.D[static_cast<size_t>(weight)] * dout;
          for (int64_t n = 0; n < e.N; ++n) {
            const size_t row = w.state_at(b, p, g, n), a_at = static_cast<size_t>(weight * e.N + n);
            const double decay = std::exp(dt * w.A[a_at]), before = h[static_cast<size_t>(s * e.N + n)];
            double& dh = grad[static_cast<size_t>(n)];
            dh += dout * w.C[row];
            out[4][row] += dout * h[static_cast<size_t>((s + 1) * e.N + n)];
            out[3][row] += dh * dt * x;
            ddt += dh * (w.A[a_at] * decay * before + w.B[row] * x);
            du += dh * dt * w.B[row];
            out[2][a_at] += dh * dt * decay * before;
            dh *= decay;
          }
          out[0][w.u_at(b, p, g, d)] += du;
          out[1][at] = ddt * w.slope(at, weight);
          out[5][static_cast<size_t>(weight)] += dout * x;
          out[6][static_cast<size_t>(weight)] += out[1][at];
        }
      }
    }
  }
  return out;
}

std::string Case::name() const {
  const Extents& e = extents;
  char text[160];
  std::snprintf(text, sizeof text, "dtype %d B%d P%d Gu%d G%d D%d N%d S%d%s", dtype, static_cast<int>(e.B),
                static_cast<int>(e.P), static_cast<int>(e.Gu), static_cast<int>(e.G), static_cast<int>(e.D),
                static_cast<int>(e.N), static_cast<int>(e.S), softplus ? "" : " no softplus");
  return text;
}
