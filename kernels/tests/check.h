// A test fails by calling `fail`; main() ends with the count. No framework: these tests must build with a cross
// compiler and nothing else.
#ifndef EDGEMAMBA_TESTS_CHECK_H
#define EDGEMAMBA_TESTS_CHECK_H

#include <vector>

// Prints the message (printf-style) and counts one failure.
__attribute__((format(printf, 1, 2))) void fail(const char* format, ...);

struct Section {
  const char* name;
  void (*run)();
};

// main() of a test program: runs the section that the one argument names, and says on `where` it ran. Exit status: 0, 1
// (failures, on stderr), or 2 for bad usage.
int run_section(int count, char** arguments, const std::vector<Section>& sections, const char* where);

void test_values();    // against double loops
void test_hostile();   // bad arguments
void test_executor();  // threads, callers at once, the caller's pool
void test_fork();      // a child forked after use

#endif  // EDGEMAMBA_TESTS_CHECK_H
