// A test fails by calling `fail`; main() counts. No framework: these tests must build with a cross compiler and nothing
// else.
#ifndef EDGEMAMBA_TESTS_CHECK_H
#define EDGEMAMBA_TESTS_CHECK_H

// Prints the message (printf-style) and counts one failure.
__attribute__((format(printf, 1, 2))) void fail(const char* format, ...);

void test_values();    // against double loops
void test_hostile();   // bad arguments
void test_executor();  // threads, callers at once, the caller's pool
void test_fork();      // a child forked after use

#endif  // EDGEMAMBA_TESTS_CHECK_H
