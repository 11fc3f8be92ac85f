#include "cuda_block.h"

#include <algorithm>
#include <numeric>

#include "check.h"

namespace emulation {
namespace {

constexpr size_t kStack = size_t{1} << 17;

// That whose threads run: makecontext() passes no pointers, and shared values belong to no block that they know.
Block* running = nullptr;

}  // namespace

Block::Block(unsigned seed, int left_out) : generator_(seed), left_out_(left_out) {}

void Block::enter() {
  Block* const block = running;
  (*block->body_)(block->now_);
  block->threads_[static_cast<size_t>(block->now_)].done = true;
}

void Block::run(int count, const std::function<void(int)>& body) {
  running = this;
  body_ = &body;
  threads_.resize(static_cast<size_t>(count));
  for (Thread& thread : threads_) {
    if (thread.stack == nullptr) thread.stack.reset(new char[kStack]);
    thread.met = thread.epoch = 0;
    thread.done = false;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = kStack;
    thread.context.uc_link = &scheduler_;
    makecontext(&thread.context, enter, 0);
  }
  std::vector<int> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  int left = count;
  while (left > 0) {
    std::shuffle(order.begin(), order.end(), generator_);
    left = count;
    for (int next : order) {
      now_ = next;
      Thread& thread = threads_[static_cast<size_t>(next)];
      if (!thread.done) swapcontext(&scheduler_, &thread.context);
      left -= thread.done;
    }
    const bool together = std::all_of(threads_.begin(), threads_.end(), [&](const Thread& thread) {
      return thread.met == threads_[0].met && thread.done == threads_[0].done;
    });
    if (!together) return fail("the threads of a block do not meet at the same barriers");
  }
  barriers_ = threads_[0].met;
  running = nullptr;
}

void Block::barrier() {
  Thread& thread = threads_[static_cast<size_t>(now_)];
  if (thread.met++ == left_out_) return;
  ++thread.epoch;
  swapcontext(&thread.context, &scheduler_);
}

void Watch::read() {
  const int thread = running->now_, epoch = running->threads_[static_cast<size_t>(thread)].epoch;
  if (writer_ == kNobody) ++running->unwritten_;
  if (written_ == epoch && writer_ != thread) ++running->races_;
  reader_ = read_ == epoch && reader_ != thread ? kSeveral : thread;
  read_ = epoch;
}

void Watch::write() {
  const int thread = running->now_, epoch = running->threads_[static_cast<size_t>(thread)].epoch;
  const bool after_a_write = written_ == epoch && writer_ != thread;
  const bool after_a_read = read_ == epoch && reader_ != thread;
  if (after_a_write || after_a_read) ++running->races_;
  writer_ = thread;
  written_ = epoch;
}

}  // namespace emulation
