// Checks print one line each and are counted; main() closes with the count.
#ifndef EDGEMAMBA_HARNESS_CHECK_H
#define EDGEMAMBA_HARNESS_CHECK_H

// Prints "ok" or "FAILED" and the line (printf-style). Returns `passed`.
__attribute__((format(printf, 2, 3))) bool check(bool passed, const char* format, ...);

// Something that cannot be checked here, and why.
__attribute__((format(printf, 1, 2))) void skip(const char* format, ...);

#endif  // EDGEMAMBA_HARNESS_CHECK_H
