// What does not hold is printed and counted; the test goes on.
#pragma once

#include <cstdio>
#include <string>

inline int failures = 0;

inline void expect(bool holds, const std::string& what) {
    if (holds) return;
    std::printf("failed: %s\n", what.c_str());
    ++failures;
}
