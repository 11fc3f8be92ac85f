// Rows of a channels-last map to and from float32 vectors, and the scratch memory of a task. Included inside the
// namespace of its instruction set.

constexpr int64_t kAlign = 16;  // floats: a cache line

static inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Hands out aligned pieces of one buffer; with a null buffer it only counts.
class Arena {
 public:
  explicit Arena(float* base) : base_(base) {}
  float* take(int64_t floats) {
    float* piece = base_ ? base_ + used_ : nullptr;
    used_ += round_up(floats, kAlign);
    return piece;
  }
  size_t used() const { return static_cast<size_t>(used_); }

 private:
  float* base_;
  int64_t used_ = 0;
};

// The first `count` < kWidth elements; the other lanes are 0.
template <typename T>
static Vec load_part(const T* p, int64_t count) {
  T lanes[kWidth];
  memset(lanes, 0, sizeof lanes);
  memcpy(lanes, p, static_cast<size_t>(count) * sizeof(T));
  return load(lanes);
}

template <typename T>
static void store_part(T* p, Vec a, int64_t count) {
  T lanes[kWidth];
  store(lanes, a);
  memcpy(p, lanes, static_cast<size_t>(count) * sizeof(T));
}

template <typename T>
static inline Vec load_lanes(const T* p, int64_t left) {
  return left >= kWidth ? load(p) : load_part(p, left);
}

template <typename T>
static inline void store_lanes(T* p, Vec a, int64_t left) {
  if (left >= kWidth) {
    store(p, a);
  } else {
    store_part(p, a, left);
  }
}

// Rows are read in the order of the scan, a piece of each: processors do not foresee where the next one lies. So each is
// asked for this many steps before it is needed.
constexpr int64_t kAhead = 4;

template <bool kToWrite = false, typename T>
static inline void prefetch_row(const T* row, int64_t width) {
  constexpr int64_t kLine = kAlign * static_cast<int64_t>(sizeof(float) / sizeof(T));
  for (int64_t d = 0; d < width; d += kLine) __builtin_prefetch(row + d, kToWrite ? 1 : 0);
}

// Subnormal operands and results count as zero while one of these lives: decaying states would otherwise pass through
// the slow subnormal range of many processors on their way to zero.
class FlushSubnormals {
 public:
#if defined(__x86_64__)
  FlushSubnormals() : saved_(__builtin_ia32_stmxcsr()) { __builtin_ia32_ldmxcsr(saved_ | 0x8040u); }
  ~FlushSubnormals() { __builtin_ia32_ldmxcsr(saved_); }

 private:
  const unsigned saved_;
#elif defined(__aarch64__)
  FlushSubnormals() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" : : "r"(saved_ | (uint64_t{1} << 24)));
  }
  ~FlushSubnormals() { asm volatile("msr fpcr, %0" : : "r"(saved_)); }

 private:
  uint64_t saved_;
#else
  FlushSubnormals() {}
  ~FlushSubnormals() {}
#endif
  FlushSubnormals(const FlushSubnormals&) = delete;
};

// exp(dt A) = exp2(dt * A log2(e)): A of one direction as [block][n][lane]. For each channel the largest |dt| that
// keeps all its exponents small (negative: none does), and the largest dt >= 0 that keeps them decaying or small.
static void load_decay(const Problem& p, int64_t direction, int64_t first, int64_t width, float* a, float* small,
                       float* decaying) {
  const float* A = static_cast<const float*>(p.A) + (direction * p.channels + first) * p.states;
  const int64_t states = p.states;
  for (int64_t d = 0; d < width; d += kWidth, A += kWidth * states, a += kWidth * states) {
    const int64_t lanes = width - d < kWidth ? width - d : kWidth;
    if (lanes < kWidth) memset(a, 0, static_cast<size_t>(kWidth * states) * sizeof(float));
    for (int64_t lane = 0; lane < lanes; ++lane) {
      for (int64_t n = 0; n < states; ++n) a[n * kWidth + lane] = A[lane * states + n] * kLog2E;
    }
    Vec largest = set(1e-28f);
    Mask unbounded = none(), growing = none();
    for (int64_t n = 0; n < states; ++n) {
      const Vec value = load(a + n * kWidth), size = abs(value);
      unbounded = unbounded | not_below_or_equal(size, set(1e30f));
      growing = growing | not_below_or_equal(value, set(0.0f));
      largest = max(size, largest);  // keeps its second operand where one is NaN
    }
    const Vec limit = select(unbounded, set(-1.0f), set(kExponentLimit) / largest);
    store(small + d, limit);
    store(decaying + d, select(unbounded | growing, limit, set(1e30f)));
  }
}

// B or C of one direction at the positions of `steps` steps, as float32 rows of N.
template <typename T>
static void load_states(const void* source, const Problem& p, int64_t batch, int64_t direction, const int32_t* order,
                        int64_t steps, float* out) {
  const T* rows = static_cast<const T*>(source) + (batch * p.positions * p.directions + direction) * p.states;
  for (int64_t s = 0; s < steps; ++s, out += p.states) {
    const T* row = rows + static_cast<int64_t>(order[s]) * p.directions * p.states;
    for (int64_t n = 0; n < p.states; n += kWidth)
      store_lanes(out + n, load_lanes(row + n, p.states - n), p.states - n);
  }
}
