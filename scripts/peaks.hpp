// Ceilings of this processor: multiply-adds in registers, and the copying of memory, by so many threads at once.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

namespace peaks {

// Seconds from when all threads are ready until the last has done work(thread).
template <class Work>
double seconds(int threads, const Work& work) {
    std::atomic<int> waiting{threads};
    std::chrono::steady_clock::time_point begin;
    const auto meet = [&](int thread) {
        // The one that comes last says when all were ready.
        if (--waiting == 0) begin = std::chrono::steady_clock::now();
        while (waiting > 0) std::this_thread::yield();
        work(thread);
    };
    std::vector<std::thread> others;
    for (int thread = 1; thread < threads; ++thread) others.emplace_back(meet, thread);
    meet(0);
    for (std::thread& other : others) other.join();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Multiply-adds that do not depend on each other: more than any processor has under way, and with what they use no more
// than sixteen registers.
constexpr int kChains = 12;

// kChains vectors of multiply-adds a round; returns something that depends on all of them.
template <class Vec>
__attribute__((noinline)) float multiply_add(long rounds, float start) {
    Vec sums[kChains], factor = Vec{} + 0.5f, term = Vec{} + start;
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) sums[i] = term + static_cast<float>(i);
    for (long round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
        for (int i = 0; i < kChains; ++i) sums[i] = sums[i] * factor + term;
    }
    Vec all = sums[0];
    for (int i = 1; i < kChains; ++i) all += sums[i];
    float lanes[sizeof(Vec) / sizeof(float)], total = 0;
    std::memcpy(lanes, &all, sizeof lanes);
    for (const float lane : lanes) total += lane;
    return total;
}

// Float32 operations a second, a multiply-add being two: the best of several tries of some milliseconds each.
template <class Vec>
double operations(int threads, int tries) {
    constexpr long kRounds = 4'000'000;
    const double done = 2.0 * kChains * sizeof(Vec) / sizeof(float) * kRounds * threads;
    volatile float start = 1.0f;  // unknown to the compiler
    std::atomic<float> kept{0};
    double best = 0;
    for (int i = 0; i < tries; ++i) {
        best = std::max(best, done / seconds(threads, [&](int) { kept = multiply_add<Vec>(kRounds, start); }));
    }
    return best;
}

// Bytes read and written a second while a piece of memory larger than any cache is copied: the best of several tries.
// Throws std::bad_alloc.
inline double copied_bytes(int threads, int tries) {
    constexpr std::size_t kBytes = std::size_t{256} << 20;
    const std::unique_ptr<char[]> from(new char[kBytes]), to(new char[kBytes]);
    const auto copy = [&](int thread) {
        const std::size_t begin = kBytes * thread / threads, end = kBytes * (thread + 1) / threads;
        std::memcpy(to.get() + begin, from.get() + begin, end - begin);
    };
    // Both have their pages before anything is measured.
    std::memset(from.get(), 1, kBytes);
    seconds(threads, copy);
    double best = 0;
    for (int i = 0; i < tries; ++i) best = std::max(best, 2.0 * kBytes / seconds(threads, copy));
    return best;
}

}  // namespace peaks
