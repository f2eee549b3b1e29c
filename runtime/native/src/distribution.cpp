#include "distribution.hpp"

#include <algorithm>

#include "lanes.hpp"

namespace PCSR_ISA {
namespace {

// Values whose bins are found in one vectorised loop, before they are looked at one by one.
constexpr int kAtOnce = 256;

// In double, as NumPy computes it: whoever compares thresholds must find the same bins.
void find_bins(const float* values, int n, const pcsr::Bins& bins, std::int32_t* found) {
    const double low = bins.low, factor = bins.factor;
    const std::int32_t last = bins.count - 1;
    for (int i = 0; i < n; ++i) {
        const std::int32_t bin = static_cast<std::int32_t>((static_cast<double>(values[i]) - low) * factor);
        found[i] = bin < last ? bin : last;
    }
}

// Calls visit(value, bin) for each value in turn.
template <class Visit>
PCSR_INLINE void each_with_bin(const float* values, std::int64_t n, const pcsr::Bins& bins, Visit visit) {
    std::int32_t found[kAtOnce];
    for (std::int64_t first = 0; first < n; first += kAtOnce) {
        const int some = static_cast<int>(std::min<std::int64_t>(kAtOnce, n - first));
        find_bins(values + first, some, bins, found);
        for (int i = 0; i < some; ++i) visit(values[first + i], found[i]);
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

void histogram(const float* values, std::int64_t n, const pcsr::Bins& bins, std::int64_t* counts, double* sums) {
    each_with_bin(values, n, bins, [&](float value, std::int32_t bin) {
        ++counts[bin];
        sums[bin] += value;
    });
}

std::int64_t inside(const float* values, std::int64_t n, const pcsr::Bins& bins, const std::uint8_t* wanted, float* found) {
    std::int64_t count = 0;
    // Written always and kept where wanted: no branch to mispredict.
    each_with_bin(values, n, bins, [&](float value, std::int32_t bin) {
        found[count] = value;
        count += wanted[bin] != 0;
    });
    return count;
}

}  // namespace PCSR_ISA
