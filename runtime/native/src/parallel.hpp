// Independent units of work, taken by threads one after another.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "simd.hpp"

namespace PCSR_ISA {

// Call work(worker, unit) for all units, on this thread and threads - 1 more. Where the system gives fewer threads, those
// that there are do it all. What it throws is thrown here, once every thread has finished its unit.
template <class Work>
void for_each_unit(int threads, int units, const Work& work) {
    std::atomic<int> next{0};
    std::atomic<bool> failed{false};
    std::exception_ptr error;
    const auto worker = [&](int index) noexcept {
        try {
            for (int unit = next++; unit < units; unit = next++) work(index, unit);
        } catch (...) {
            next = units;
            if (!failed.exchange(true)) error = std::current_exception();
        }
    };
    std::vector<std::thread> others;
    others.reserve(static_cast<std::size_t>(std::max(threads, 1)));
    try {
        for (int index = 1; index < std::min(threads, units); ++index) others.emplace_back(worker, index);
    } catch (const std::system_error&) {
    } catch (const std::bad_alloc&) {
    }
    worker(0);
    for (std::thread& other : others) other.join();
    if (error) std::rethrow_exception(error);
}

}  // namespace PCSR_ISA
