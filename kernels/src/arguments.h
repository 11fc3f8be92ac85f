// The one place where arguments are validated; see scan.h for the contract.
#ifndef EDGEMAMBA_SRC_ARGUMENTS_H
#define EDGEMAMBA_SRC_ARGUMENTS_H

#include <stddef.h>

#include "problem.h"

namespace edgemamba {

// The caller's message buffer; may be absent.
class Message {
 public:
  Message(char* text, size_t size) : text_(text), size_(text ? size : 0) {
    if (size_) text_[0] = '\0';
  }
  // printf-style; always NUL-terminated, cut where it does not fit.
  __attribute__((format(printf, 2, 3))) void set(const char* format, ...) const;

 private:
  char* text_;
  size_t size_;
};

// Each returns true where the argument keeps the contract, else sets the message, which starts with the argument's
// name.
bool read_inputs(const em_scan_inputs* inputs, Problem* problem, const Message& message);
bool check_output(const em_tensor* tensor, const char* name, const Problem& problem, const Message& message);
// The states that a forward call keeps for its backward one.
bool check_checkpoints(const em_tensor* tensor, const Problem& problem, const Message& message);
bool read_gradients(const em_scan_gradients* gradients, const Problem& problem, Gradients* out, const Message& message);

}  // namespace edgemamba

#endif  // EDGEMAMBA_SRC_ARGUMENTS_H
