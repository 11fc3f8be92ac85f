#include "arguments.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

namespace edgemamba {
namespace {

// What one argument must look like. `extent` entries of kAny take what is given (and are read back by the caller).
constexpr int64_t kAny = -1;

constexpr int kMostRank = 5;

struct Expectation {
  const char* name;
  const char* layout;  // in the contract's letters, for the message
  int32_t rank;
  int64_t extent[kMostRank];
};

const char* dtype_name(int32_t dtype) {
  switch (dtype) {
    case EM_F32: return "float32";
    case EM_I32: return "int32";
    case EM_F16: return "float16";
    case EM_F64: return "float64";
    case EM_BF16: return "bfloat16";
    default: return "unsupported";
  }
}

int64_t element_size(int32_t dtype) {
  switch (dtype) {
    case EM_F16:
    case EM_BF16: return 2;
    case EM_F64: return 8;
    default: return 4;
  }
}

// "(1, 197, 1, 384)"; ranks above eight are cut.
void print_shape(const int64_t* shape, int32_t rank, char* text, size_t size) {
  size_t used = static_cast<size_t>(std::snprintf(text, size, "("));
  for (int32_t i = 0; i < rank && i < 8 && used < size; ++i) {
    const int wrote =
        std::snprintf(text + used, size - used, "%s%lld", i ? ", " : "", static_cast<long long>(shape[i]));
    used += static_cast<size_t>(wrote);
  }
  if (used < size) std::snprintf(text + used, size - used, rank > 8 ? ", ...)" : ")");
}

bool check_dtype(const em_tensor& tensor, const char* name, int32_t expected, const Message& message) {
  if (tensor.dtype == expected) return true;
  message.set("%s: dtype %s (%d), expected %s", name, dtype_name(tensor.dtype), tensor.dtype, dtype_name(expected));
  return false;
}

bool check_shape(const em_tensor& tensor, const Expectation& want, const Message& message) {
  if (tensor.rank != want.rank) {
    message.set("%s: rank %d, expected %d: %s", want.name, tensor.rank, want.rank, want.layout);
    return false;
  }
  if (tensor.shape == nullptr) {
    message.set("%s: no shape given, expected %s", want.name, want.layout);
    return false;
  }
  int64_t bytes = element_size(tensor.dtype);
  bool matches = true, representable = true;
  bool empty = false;
  for (int32_t i = 0; i < want.rank; ++i) {
    const int64_t extent = tensor.shape[i];
    if (extent < 0) {
      message.set("%s: extent %lld in dimension %d is negative", want.name, static_cast<long long>(extent), i);
      return false;
    }
    matches = matches && (want.extent[i] == kAny || want.extent[i] == extent);
    empty = empty || extent == 0;
    // A zero elsewhere does not excuse a product that strides and loops could not represent.
    if (extent > 0) representable = representable && !__builtin_mul_overflow(bytes, extent, &bytes);
  }
  if (!matches) {
    char found[160], expected[160];
    int64_t extents[kMostRank];
    for (int32_t i = 0; i < want.rank; ++i) extents[i] = want.extent[i] == kAny ? tensor.shape[i] : want.extent[i];
    print_shape(tensor.shape, tensor.rank, found, sizeof found);
    print_shape(extents, want.rank, expected, sizeof expected);
    message.set("%s: shape %s, expected %s = %s", want.name, found, want.layout, expected);
    return false;
  }
  if (!representable || bytes > std::numeric_limits<ptrdiff_t>::max() / 2) {
    message.set("%s: more elements than memory can address", want.name);
    return false;
  }
  if (!empty && tensor.data == nullptr) {
    message.set("%s: data is NULL", want.name);
    return false;
  }
  return true;
}

bool at_least_one(int64_t extent, const char* name, const char* what, const Message& message) {
  if (extent >= 1) return true;
  message.set("%s: no %s", name, what);
  return false;
}

bool check_order(const Problem& p, const Message& message) {
  // The last direction (plus one) that visited each position: no clearing between directions.
  std::vector<int32_t> visited(static_cast<size_t>(p.positions), 0);
  for (int64_t g = 0; g < p.directions; ++g) {
    const int32_t stamp = static_cast<int32_t>(g + 1);
    for (int64_t s = 0; s < p.steps; ++s) {
      const int64_t position = p.order[g * p.steps + s];
      if (position < 0 || position >= p.positions) {
        message.set("order: entry %lld at [%lld, %lld] is outside 0..%lld", static_cast<long long>(position),
                    static_cast<long long>(g), static_cast<long long>(s), static_cast<long long>(p.positions - 1));
        return false;
      }
      int32_t& last = visited[static_cast<size_t>(position)];
      if (last == stamp) {
        message.set("order: position %lld is visited twice in direction %lld", static_cast<long long>(position),
                    static_cast<long long>(g));
        return false;
      }
      last = stamp;
    }
  }
  return true;
}

}  // namespace

void Message::set(const char* format, ...) const {
  if (size_ == 0) return;
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text_, size_, format, arguments);
  va_end(arguments);
}

bool read_inputs(const em_scan_inputs* inputs, Problem* problem, const Message& message) {
  if (inputs == nullptr) {
    message.set("inputs: NULL");
    return false;
  }
  const em_scan_inputs& in = *inputs;
  if (in.u.dtype != EM_F32 && in.u.dtype != EM_F16 && in.u.dtype != EM_BF16 && in.u.dtype != EM_F64) {
    message.set("u: dtype %s (%d), expected float32, float16, bfloat16 or float64", dtype_name(in.u.dtype), in.u.dtype);
    return false;
  }
  const int32_t parameter_dtype = in.u.dtype == EM_F64 ? EM_F64 : EM_F32;
  if (!check_dtype(in.delta, "delta", in.u.dtype, message) || !check_dtype(in.A, "A", parameter_dtype, message) ||
      !check_dtype(in.B, "B", in.u.dtype, message) || !check_dtype(in.C, "C", in.u.dtype, message) ||
      !check_dtype(in.D, "D", parameter_dtype, message) ||
      !check_dtype(in.delta_bias, "delta_bias", parameter_dtype, message) ||
      !check_dtype(in.order, "order", EM_I32, message)) {
    return false;
  }
  if (in.delta_softplus != 0 && in.delta_softplus != 1) {
    message.set("delta_softplus: %d, expected 0 or 1", in.delta_softplus);
    return false;
  }

  // delta carries B, P, G and D; A adds N; order adds S. Everything else must agree with these.
  if (!check_shape(in.delta, {"delta", "(B, P, G, D)", 4, {kAny, kAny, kAny, kAny}}, message)) return false;
  const int64_t batch = in.delta.shape[0], positions = in.delta.shape[1];
  const int64_t directions = in.delta.shape[2], channels = in.delta.shape[3];
  if (!at_least_one(directions, "delta", "directions (G)", message) ||
      !at_least_one(channels, "delta", "channels (D)", message)) {
    return false;
  }
  if (positions > std::numeric_limits<int32_t>::max() || directions > std::numeric_limits<int32_t>::max() - 1) {
    message.set("delta: more positions or directions than an int32 order can name");
    return false;
  }
  if (!check_shape(in.u, {"u", "(B, P, 1 or G, D)", 4, {batch, positions, kAny, channels}}, message)) return false;
  const int64_t u_directions = in.u.shape[2];
  if (u_directions != 1 && u_directions != directions) {
    message.set("u: %lld directions, expected 1 or G = %lld", static_cast<long long>(u_directions),
                static_cast<long long>(directions));
    return false;
  }
  if (!check_shape(in.A, {"A", "(G, D, N)", 3, {directions, channels, kAny}}, message)) return false;
  const int64_t states = in.A.shape[2];
  if (!at_least_one(states, "A", "states (N)", message)) return false;
  if (!check_shape(in.B, {"B", "(B, P, G, N)", 4, {batch, positions, directions, states}}, message) ||
      !check_shape(in.C, {"C", "(B, P, G, N)", 4, {batch, positions, directions, states}}, message) ||
      !check_shape(in.D, {"D", "(G, D)", 2, {directions, channels, 0, 0}}, message) ||
      !check_shape(in.delta_bias, {"delta_bias", "(G, D)", 2, {directions, channels, 0, 0}}, message) ||
      !check_shape(in.order, {"order", "(G, S)", 2, {directions, kAny, 0, 0}}, message)) {
    return false;
  }
  const int64_t steps = in.order.shape[1];
  if (steps > positions) {
    message.set("order: %lld steps, but there are %lld positions", static_cast<long long>(steps),
                static_cast<long long>(positions));
    return false;
  }

  *problem = {batch,
              positions,
              directions,
              u_directions,
              channels,
              states,
              steps,
              in.u.dtype,
              in.delta_softplus == 1,
              in.u.data,
              in.delta.data,
              in.A.data,
              in.B.data,
              in.C.data,
              in.D.data,
              in.delta_bias.data,
              static_cast<const int32_t*>(in.order.data)};
  return check_order(*problem, message);
}

bool check_output(const em_tensor* tensor, const char* name, const Problem& p, const Message& message) {
  if (tensor == nullptr) {
    message.set("%s: NULL", name);
    return false;
  }
  return check_dtype(*tensor, name, p.dtype, message) &&
         check_shape(*tensor, {name, "(B, P, D)", 3, {p.batch, p.positions, p.channels, 0}}, message);
}

bool check_checkpoints(const em_tensor* tensor, const Problem& p, const Message& message) {
  if (tensor == nullptr) {
    message.set("checkpoints: NULL");
    return false;
  }
  if (p.dtype == EM_F64) {
    message.set("checkpoints: float64 keeps none");
    return false;
  }
  const int64_t chunks = (p.steps + EM_CHECKPOINT_STEPS - 1) / EM_CHECKPOINT_STEPS;
  return check_dtype(*tensor, "checkpoints", EM_F32, message) &&
         check_shape(*tensor,
                     {"checkpoints", "(B, ceil(S / 32), G, N, D)", 5,
                      {p.batch, chunks, p.directions, p.states, p.channels}},
                     message);
}

bool read_gradients(const em_scan_gradients* gradients, const Problem& p, Gradients* out, const Message& message) {
  if (gradients == nullptr) {
    message.set("gradients: NULL");
    return false;
  }
  const int32_t parameter_dtype = p.dtype == EM_F64 ? EM_F64 : EM_F32;
  const em_scan_gradients& g = *gradients;
  const auto wanted = [&](const em_tensor& tensor, int32_t dtype, const Expectation& want) {
    return tensor.data == nullptr ||
           (check_dtype(tensor, want.name, dtype, message) && check_shape(tensor, want, message));
  };
  if (!wanted(g.u, p.dtype,
              {"gradient of u", "(B, P, Gu, D)", 4, {p.batch, p.positions, p.u_directions, p.channels}}) ||
      !wanted(g.delta, p.dtype,
              {"gradient of delta", "(B, P, G, D)", 4, {p.batch, p.positions, p.directions, p.channels}}) ||
      !wanted(g.A, parameter_dtype, {"gradient of A", "(G, D, N)", 3, {p.directions, p.channels, p.states, 0}}) ||
      !wanted(g.B, p.dtype, {"gradient of B", "(B, P, G, N)", 4, {p.batch, p.positions, p.directions, p.states}}) ||
      !wanted(g.C, p.dtype, {"gradient of C", "(B, P, G, N)", 4, {p.batch, p.positions, p.directions, p.states}}) ||
      !wanted(g.D, parameter_dtype, {"gradient of D", "(G, D)", 2, {p.directions, p.channels, 0, 0}}) ||
      !wanted(g.delta_bias, parameter_dtype,
              {"gradient of delta_bias", "(G, D)", 2, {p.directions, p.channels, 0, 0}})) {
    return false;
  }
  *out = {g.u.data, g.delta.data, g.A.data, g.B.data, g.C.data, g.D.data, g.delta_bias.data};
  return true;
}

}  // namespace edgemamba
