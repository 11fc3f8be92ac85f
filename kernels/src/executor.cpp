#include "executor.h"

#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

namespace edgemamba {
namespace {

// A job is handed to the workers through one atomic counter. Tasks here take some 30 to 300 us, so a worker that has
// just finished stays awake for a moment: the next scan of the same network usually follows at once.
constexpr auto kSpin = std::chrono::microseconds(50);

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <typename Condition>
bool spin_until(Condition condition) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (condition()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return condition();
}

// One thread's share of a job: the next index that no other thread has taken, until there is none.
void drain(std::atomic<size_t>* next, size_t count, Task task, void* data) {
  for (size_t i; (i = next->fetch_add(1, std::memory_order_relaxed)) < count;) task(data, i);
}

class Pool {
 public:
  explicit Pool(pid_t owner) : owner_(owner) {}

  pid_t owner() const { return owner_; }

  // The caller works too. One job at a time: where another thread's job is running, the caller does its own alone.
  void run(int threads, Task task, void* data, size_t count) {
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (!turn.owns_lock() || !grow(threads - 1)) {
      for (size_t i = 0; i < count; ++i) task(data, i);
      return;
    }
    task_ = task;
    data_ = data;
    count_ = count;
    next_.store(0, std::memory_order_relaxed);
    const int helpers = threads - 1 < workers_ ? threads - 1 : workers_;
    // Every worker looks at every job, and those past `helpers` put it back at once: so "pending" counts all of them.
    helpers_ = helpers;
    pending_.store(workers_, std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    drain(&next_, count_, task_, data_);
    if (!spin_until([this] { return pending_.load(std::memory_order_acquire) == 0; })) {
      std::unique_lock<std::mutex> lock(mutex_);
      done_.wait(lock, [this] { return pending_.load(std::memory_order_acquire) == 0; });
    }
  }

 private:
  // Makes sure of `wanted` workers; fewer where the system gives no more. False where there is none at all.
  bool grow(int wanted) {
    while (workers_ < wanted) {
      try {
        std::thread(&Pool::work, this, workers_, generation_.load()).detach();
      } catch (const std::system_error&) {
        break;
      }
      ++workers_;
    }
    return workers_ > 0;
  }

  void work(int index, unsigned seen) {
    for (;;) {
      const auto changed = [&] { return generation_.load(std::memory_order_acquire) != seen; };
      if (!spin_until(changed)) {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, changed);
      }
      seen = generation_.load(std::memory_order_acquire);
      if (index < helpers_) drain(&next_, count_, task_, data_);
      if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        std::lock_guard<std::mutex> lock(mutex_);
        done_.notify_one();
      }
    }
  }

  const pid_t owner_;
  std::mutex turn_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::atomic<unsigned> generation_{0};
  std::atomic<size_t> next_{0};
  std::atomic<int> pending_{0};
  Task task_ = nullptr;
  void* data_ = nullptr;
  size_t count_ = 0;
  int helpers_ = 0;
  int workers_ = 0;
};

// The pool of this process. fork() copies the object but not its threads, so a child makes a pool of its own and
// leaves the copy alone (its locks may be held by threads that do not exist here). Never destroyed: the workers use it
// until the process ends; the library is linked with -z nodelete for the same reason.
Pool* pool() {
  static std::atomic<Pool*> current{nullptr};
  const pid_t self = getpid();
  Pool* found = current.load(std::memory_order_acquire);
  while (found == nullptr || found->owner() != self) {
    Pool* made = new (std::nothrow) Pool(self);
    if (made == nullptr) return nullptr;
    if (current.compare_exchange_strong(found, made, std::memory_order_acq_rel)) return made;
    delete made;  // another thread was first; its pool is in `found`
  }
  return found;
}

}  // namespace

int thread_count(const em_executor* executor) {
  if (executor != nullptr && executor->threads > 0) return executor->threads;
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
#endif
  const unsigned cores = std::thread::hardware_concurrency();
  return cores ? static_cast<int>(cores) : 1;
}

bool parallel_for(const em_executor* executor, int threads, Task task, void* data, size_t count) {
  if (threads > 1 && count > 1 && executor != nullptr && executor->parallel_for != nullptr) {
    return executor->parallel_for(executor->context, task, data, count) == 0;
  }
  Pool* workers = threads > 1 && count > 1 ? pool() : nullptr;
  if (workers != nullptr) {
    workers->run(static_cast<size_t>(threads) < count ? threads : static_cast<int>(count), task, data, count);
  } else {
    for (size_t i = 0; i < count; ++i) task(data, i);
  }
  return true;
}

}  // namespace edgemamba

extern "C" int em_openmp_parallel_for(void* openmp, void (*task)(void*, size_t), void* data, size_t count) {
  struct Region {
    edgemamba::Task task;
    void* data;
    size_t count;
    std::atomic<size_t> next;
  } region = {task, data, count, {0}};
  const auto* const library = static_cast<const em_openmp*>(openmp);
  const auto body = [](void* shared) {
    auto* const mine = static_cast<Region*>(shared);
    edgemamba::drain(&mine->next, mine->count, mine->task, mine->data);
  };
  library->parallel(body, &region, library->threads, 0);
  return 0;
}
