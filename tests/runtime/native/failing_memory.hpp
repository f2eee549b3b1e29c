// Memory that ends when a test wants it to: replaces the global operators, so a program includes it once.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace memory {

// Allocations, of all threads, that still succeed; none fails while it is negative.
inline std::atomic<long> left{-1};

inline bool refused() {
    long now = left;
    while (now > 0 && !left.compare_exchange_weak(now, now - 1)) {
    }
    return now == 0;
}

// Do something with memory for no allocation, then for one, and so on until it succeeds. Returns how often it failed.
// Whatever it took must be back then: the leak sanitizer looks at the end of the program.
template <class Work>
long count_failures(const Work& work) {
    for (long failures = 0;; ++failures) {
        left = failures;
        try {
            work();
            left = -1;
            return failures;
        } catch (const std::bad_alloc&) {
            left = -1;
        }
    }
}

// To the byte, so that the address sanitizer sees the first one beyond.
inline void* allocate(std::size_t size, std::size_t alignment) {
    void* made = nullptr;
    if (refused() || posix_memalign(&made, alignment, size ? size : 1) != 0) throw std::bad_alloc();
    return made;
}

}  // namespace memory

void* operator new(std::size_t size) { return memory::allocate(size, alignof(std::max_align_t)); }
void* operator new(std::size_t size, std::align_val_t alignment) {
    return memory::allocate(size, static_cast<std::size_t>(alignment));
}
void operator delete(void* made) noexcept { std::free(made); }
void operator delete(void* made, std::size_t) noexcept { std::free(made); }
void operator delete(void* made, std::align_val_t) noexcept { std::free(made); }
void operator delete(void* made, std::size_t, std::align_val_t) noexcept { std::free(made); }
