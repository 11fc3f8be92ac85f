// Threads: any number gives the same bits; callers at once; a child after fork; the caller's own pool; OpenMP's.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "case.h"
#include "check.h"

namespace {

const Extents kLarge{2, 130, 1, 2, 200, 16, 130};

void same_bits_on_any_threads() {
  Case one(kLarge, EM_F32, 5);
  const em_executor single = {1, nullptr, nullptr};
  if (one.forward(&single) || one.backward(&single)) return fail("one thread: %s", one.message);
  for (int32_t threads : {2, 3, 8}) {
    Case many(kLarge, EM_F32, 5);
    const em_executor executor = {threads, nullptr, nullptr};
    for (int repeat = 0; repeat < 20; ++repeat) {
      if (many.forward(&executor) || many.backward(&executor)) return fail("%d threads: %s", threads, many.message);
      if (many.y.bytes() != one.y.bytes()) return fail("y differs on %d threads", threads);
    }
    for (size_t i = 0; i < 7; ++i) {
      if (many.gradients[i].bytes() != one.gradients[i].bytes()) fail("gradient %zu differs on %d threads", i, threads);
    }
    if (many.forward_and_backward(&executor)) return fail("with checkpoints: %s", many.message);
    for (size_t i = 0; i < 7; ++i) {
      if (many.gradients[i].bytes() != one.gradients[i].bytes()) fail("gradient %zu differs with checkpoints", i);
    }
  }
}

void callers_at_once() {
  Case expected(kLarge, EM_F32, 6);
  expected.forward();
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&] {
      Case mine(kLarge, EM_F32, 6);
      const em_executor executor = {4, nullptr, nullptr};
      for (int repeat = 0; repeat < 10; ++repeat)
        wrong += mine.forward(&executor) != EM_OK || mine.y.bytes() != expected.y.bytes();
    });
  }
  for (auto& caller : callers) caller.join();
  if (wrong) fail("%d wrong results with four callers at once", wrong.load());
}

}  // namespace

// A data loader forks after the library has made its threads, which do not exist in the child.
void test_fork() {
  const em_executor executor = {4, nullptr, nullptr};
  Case parent(kLarge, EM_F32, 7);
  parent.forward(&executor);
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    Case mine(kLarge, EM_F32, 7);
    for (int repeat = 0; repeat < 5; ++repeat) {
      if (mine.forward(&executor) || mine.backward(&executor)) _exit(2);
    }
    _exit(mine.y.bytes() == parent.y.bytes() ? 0 : 3);
  }
  int status = 0;
  waitpid(child, &status, 0);
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) fail("after fork: status %d", status);
  if (parent.forward(&executor)) fail("the parent after fork: %s", parent.message);
}

namespace {

struct Calls {
  size_t jobs = 0, tasks = 0;
  bool refuse = false;
};

int backwards(void* context, void (*task)(void*, size_t), void* data, size_t count) {
  auto* calls = static_cast<Calls*>(context);
  if (calls->refuse) return 1;
  ++calls->jobs;
  calls->tasks += count;
  for (size_t i = count; i-- > 0;) task(data, i);
  return 0;
}

void callers_pool() {
  Case own(kLarge, EM_F32, 8), theirs(kLarge, EM_F32, 8);
  own.forward();
  Calls calls;
  const em_executor executor = {3, &calls, backwards};
  if (theirs.forward(&executor)) fail("caller's pool: %s", theirs.message);
  if (theirs.y.bytes() != own.y.bytes()) fail("y differs on the caller's pool");
  if (calls.jobs != 1 || calls.tasks < 3) fail("caller's pool: %zu jobs, %zu tasks", calls.jobs, calls.tasks);
  calls.refuse = true;
  if (theirs.forward(&executor) != EM_INTERNAL || !std::strstr(theirs.message, "pool"))
    fail("refusal: %s", theirs.message);
}

// Stands for GOMP_parallel: `threads` threads, the caller among them, each run the body once.
unsigned regions = 0, threads_of_last = 0;
void three_threads(void (*body)(void*), void* data, unsigned threads, unsigned) {
  ++regions;
  threads_of_last = threads;
  std::vector<std::thread> others;
  for (unsigned i = 1; i < threads; ++i) others.emplace_back(body, data);
  body(data);
  for (auto& other : others) other.join();
}

void openmp() {
  Case own(kLarge, EM_F32, 8), theirs(kLarge, EM_F32, 8);
  own.forward();
  own.backward();
  em_openmp library = {three_threads, 3};
  const em_executor executor = {3, &library, em_openmp_parallel_for};
  if (theirs.forward(&executor) || theirs.backward(&executor)) fail("OpenMP: %s", theirs.message);
  if (theirs.y.bytes() != own.y.bytes()) fail("y differs on OpenMP's threads");
  for (size_t i = 0; i < own.gradients.size(); ++i) {
    if (theirs.gradients[i].bytes() != own.gradients[i].bytes()) fail("gradient %zu differs on OpenMP's threads", i);
  }
  if (regions < 2 || threads_of_last != 3) fail("OpenMP: %u regions of %u threads", regions, threads_of_last);
  regions = 0;
  const em_executor alone = {1, &library, em_openmp_parallel_for};
  if (theirs.forward(&alone) || regions != 0) fail("one thread: %u regions", regions);
}

}  // namespace

void test_executor() {
  same_bits_on_any_threads();
  callers_at_once();
  callers_pool();
  openmp();
}
