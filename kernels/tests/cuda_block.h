// The threads of one CUDA block on the host: each on a stack of its own, taking turns at barriers, and shared memory
// that knows who touched it since the last one.
#ifndef EDGEMAMBA_TESTS_CUDA_BLOCK_H
#define EDGEMAMBA_TESTS_CUDA_BLOCK_H

#include <ucontext.h>

#include <functional>
#include <memory>
#include <random>
#include <vector>

namespace emulation {

// Runs blocks, one after another. Between two barriers the threads go in an order drawn from `seed`, each as far as its
// next barrier.
class Block {
 public:
  // `left_out`: this barrier of every block, counted from 0, holds nobody up; -1: all do.
  explicit Block(unsigned seed, int left_out = -1);
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  // body(thread) for each thread; may be called again. Fails the test where not all threads meet at the same barriers.
  void run(int threads, const std::function<void(int)>& body);

  // Of a thread inside run().
  void barrier();

  // Of the last run: how many barriers each thread came to.
  int barriers() const { return barriers_; }
  // Of all runs: values that two threads touched between the same two barriers, one of them writing, and values that
  // were read before anybody wrote them.
  int races() const { return races_; }
  int unwritten() const { return unwritten_; }

 private:
  friend class Watch;
  static void enter();

  struct Thread {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    int met = 0;    // barriers it came to
    int epoch = 0;  // barriers it waited at
    bool done = false;
  };

  std::mt19937 generator_;
  const int left_out_;
  std::vector<Thread> threads_;
  ucontext_t scheduler_;
  const std::function<void(int)>* body_ = nullptr;
  int now_ = -1;  // the thread that runs
  int barriers_ = 0, races_ = 0, unwritten_ = 0;
};

// Who touched a shared value, and between which barriers.
class Watch {
 public:
  void read();
  void write();

 private:
  enum : int { kNobody = -1, kSeveral = -2 };
  int writer_ = kNobody, written_ = -1;  // thread and its epoch
  int reader_ = kNobody, read_ = -1;
};

// A value in shared memory, as scan_lane.h's Cell.
template <typename Value>
class Watched {
 public:
  operator Value() const {
    watch_.read();
    return value_;
  }
  Watched& operator=(const Value& value) {
    watch_.write();
    value_ = value;
    return *this;
  }

 private:
  mutable Watch watch_;
  Value value_{};
};

}  // namespace emulation

#endif  // EDGEMAMBA_TESTS_CUDA_BLOCK_H
