#include "distribution.hpp"

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "lanes.hpp"
#include "parallel.hpp"

namespace PCSR_ISA {
namespace {

// What a thread takes at once.
constexpr std::int64_t kSpan = 1 << 18;
// Values whose bins are found in one vectorised loop, before they are looked at one by one.
constexpr int kAtOnce = 256;

int spans(std::int64_t n) { return static_cast<int>((n + kSpan - 1) / kSpan); }

// In double, as NumPy computes it: whoever compares thresholds must find the same bins.
void find_bins(const float* values, int n, const pcsr::Bins& bins, std::int32_t* found) {
    const double low = bins.low, factor = bins.factor;
    const std::int32_t last = bins.count - 1;
    for (int i = 0; i < n; ++i) {
        const std::int32_t bin = static_cast<std::int32_t>((static_cast<double>(values[i]) - low) * factor);
        found[i] = bin < last ? bin : last;
    }
}

// Some values of a span at a time, and their bins: visit(values, bins, how many).
template <class Visit>
PCSR_INLINE void each_with_bins(const float* values, std::int64_t n, int span, const pcsr::Bins& bins, Visit visit) {
    std::int32_t found[kAtOnce];
    const std::int64_t end = std::min(n, (span + 1) * kSpan);
    for (std::int64_t first = span * kSpan; first < end; first += kAtOnce) {
        const int some = static_cast<int>(std::min<std::int64_t>(kAtOnce, end - first));
        find_bins(values + first, some, bins, found);
        visit(values + first, found, some);
    }
}

}  // namespace

void extremes(const float* values, std::int64_t n, float* found) {
    float low = values[0], high = values[0];
    std::int64_t i = 0;
    if (n >= kLanes) {
        Vec lowest = load(values), highest = lowest;
        for (; i + kLanes <= n; i += kLanes) {
            lowest = minimum(lowest, load(values + i));
            highest = maximum(highest, load(values + i));
        }
        float lows[kLanes], highs[kLanes];
        store(lows, lowest);
        store(highs, highest);
        low = *std::min_element(lows, lows + kLanes);
        high = *std::max_element(highs, highs + kLanes);
    }
    for (; i < n; ++i) {
        low = std::min(low, values[i]);
        high = std::max(high, values[i]);
    }
    found[0] = low;
    found[1] = high;
}

// Spans are added up one after the other, whoever counted them: sums depend on the order.
void histogram(const float* values, std::int64_t n, const pcsr::Bins& bins, int threads, std::int64_t* counts, double* sums) {
    struct Own {
        std::vector<std::int64_t> counts;
        std::vector<double> sums;
    };
    const std::size_t size = static_cast<std::size_t>(bins.count);
    std::vector<Own> of_threads(static_cast<std::size_t>(std::max(threads, 1)));
    for (Own& own : of_threads) own = {std::vector<std::int64_t>(size), std::vector<double>(size)};
    std::atomic<int> added{0};
    for_each_unit(threads, spans(n), [&](int thread, int span) {
        Own& own = of_threads[static_cast<std::size_t>(thread)];
        each_with_bins(values, n, span, bins, [&](const float* some, const std::int32_t* in, int all) {
            for (int i = 0; i < all; ++i) {
                ++own.counts[static_cast<std::size_t>(in[i])];
                own.sums[static_cast<std::size_t>(in[i])] += some[i];
            }
        });
        while (added.load(std::memory_order_acquire) != span) std::this_thread::yield();
        for (std::size_t i = 0; i < size; ++i) {
            counts[i] += own.counts[i];
            sums[i] += own.sums[i];
        }
        added.store(span + 1, std::memory_order_release);
        std::fill(own.counts.begin(), own.counts.end(), 0);
        std::fill(own.sums.begin(), own.sums.end(), 0.0);
    });
}

void inside(const float* values, std::int64_t n, const pcsr::Bins& bins, int threads, const std::uint8_t* wanted,
            float* found) {
    std::atomic<std::int64_t> taken{0};
    for_each_unit(threads, spans(n), [&](int, int span) {
        each_with_bins(values, n, span, bins, [&](const float* some, const std::int32_t* in, int all) {
            float kept[kAtOnce];
            int count = 0;
            // Written always and kept where wanted: no branch to mispredict.
            for (int i = 0; i < all; ++i) {
                kept[count] = some[i];
                count += wanted[in[i]] != 0;
            }
            std::copy_n(kept, count, found + taken.fetch_add(count, std::memory_order_relaxed));
        });
    });
}

}  // namespace PCSR_ISA
