// The cases that every implementation of the scan is held against, and how.
#ifndef EDGEMAMBA_TESTS_TABLE_H
#define EDGEMAMBA_TESTS_TABLE_H

#include <functional>
#include <vector>

#include "case.h"

// Relative to the largest value: rounding of one result, and of float32 sums.
double tolerance(int32_t dtype);

// Fails where two lists differ by more than `allowed` times the largest expected value (at least 1).
void compare(const Case& c, const char* what, const std::vector<double>& found, const std::vector<double>& expected,
             double allowed);

// Sixty shapes, empty ones among them, in each of the types.
void for_random_shapes(const std::vector<int32_t>& dtypes, const std::function<void(Case&&)>& check);

// The corners of the arithmetic, with the slack that each is allowed.
void for_corners(int64_t states, const std::function<void(Case&&, double slack)>& check);

// A value that overflows or is NaN must come out as that, and only in its own channel; its neighbours stay exact.
// `forward` runs the case and returns y.
void check_overflow_and_nan(int64_t steps, int64_t states, const std::function<std::vector<double>(Case*)>& forward);

#endif  // EDGEMAMBA_TESTS_TABLE_H
