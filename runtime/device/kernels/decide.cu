// Thresholds from the difficulties of the whole picture. Passes over all values, and between them updates by one
// thread; nothing leaves the device. Sums are of integers, so the order of threads is of no matter.

// Bits of the fixed-point difficulties are chosen by the caller so that n values cannot overflow 63 bits.
__device__ inline u64 fixed_point(float value, double unit) { return (u64)(i64)rint((double)value * unit); }

// Extremes as keys, and the sum of all values. `extremes` begins as (2^32 - 1, 0), `total` as 0.
extern "C" __global__ void find_extremes(const float* values, i64 n, double unit, u32* extremes, u64* total) {
    __shared__ u32 least, most;
    if (threadIdx.x == 0) {
        least = 0xffffffffu;
        most = 0;
    }
    __syncthreads();
    u32 low = 0xffffffffu, high = 0;
    u64 sum = 0;
    for (i64 i = thread_index(); i < n; i += thread_count()) {
        float value = values[i];
        u32 key = key_of(value);
        low = key < low ? key : low;
        high = key > high ? key : high;
        sum += fixed_point(value, unit);
    }
    atomicMin(&least, low);
    atomicMax(&most, high);
    __syncthreads();
    if (threadIdx.x == 0) {
        atomicMin(&extremes[0], least);
        atomicMax(&extremes[1], most);
    }
    add_over_block(sum, total);
}

// M-means. `centres` (CLASSES), `reached` (2 * STEPS) of counts and sums of the values at or above each threshold,
// `state`: rounds made, and whether it is over.

__device__ inline void place_thresholds(const double* centres, float* thresholds) {
    for (int j = 0; j < STEPS; ++j) thresholds[j] = rounded_up((centres[j] + centres[j + 1]) / 2);
}

extern "C" __global__ void means_begin(
    const u32* extremes, const u64* total, i64 n, double unit, double* centres, u64* reached, float* thresholds,
    int* state) {
    if (thread_index() != 0) return;
    double low = value_of(extremes[0]), high = value_of(extremes[1]);
    state[0] = 0;
    state[1] = !(high > low);
    for (int j = 0; j < 2 * STEPS; ++j) reached[j] = 0;
    if (state[1]) {
        for (int j = 0; j < STEPS; ++j) thresholds[j] = infinity();
        return;
    }
    if (CLASSES == 2) {
        centres[0] = low;
        centres[1] = (double)(i64)total[0] / unit / (double)n;
    } else {
        for (int j = 0; j < CLASSES; ++j) centres[j] = low + (high - low) * ((double)j / STEPS);
    }
    place_thresholds(centres, thresholds);
}

extern "C" __global__ void means_pass(
    const float* values, i64 n, double unit, const float* thresholds, const int* state, u64* reached) {
    if (state[1]) return;
    u64 counts[STEPS], sums[STEPS];
    float at[STEPS];
    for (int j = 0; j < STEPS; ++j) {
        counts[j] = sums[j] = 0;
        at[j] = thresholds[j];
    }
    for (i64 i = thread_index(); i < n; i += thread_count()) {
        float value = values[i];
        u64 fixed = fixed_point(value, unit);
        for (int j = 0; j < STEPS; ++j) {
            bool is_reached = value >= at[j];
            counts[j] += is_reached;
            sums[j] += is_reached ? fixed : 0;
        }
    }
    for (int j = 0; j < STEPS; ++j) {
        add_over_block(counts[j], &reached[j]);
        add_over_block(sums[j], &reached[STEPS + j]);
    }
}

extern "C" __global__ void means_update(
    const u32* extremes, const u64* total, i64 n, double unit, int rounds, double tolerance, double* centres,
    u64* reached, float* thresholds, int* state) {
    if (thread_index() != 0 || state[1]) return;
    double width = (double)value_of(extremes[1]) - (double)value_of(extremes[0]);
    double updated[CLASSES], moved = 0;
    for (int j = 0; j < CLASSES; ++j) {
        i64 count = j == 0 ? n : (i64)reached[j - 1], sum = (i64)(j == 0 ? total[0] : reached[STEPS + j - 1]);
        if (j < STEPS) {
            count -= (i64)reached[j];
            sum -= (i64)reached[STEPS + j];
        }
        double mean = count ? (double)sum / unit / (double)count : centres[j];
        // Rounding must not move a mean out of its cluster: thresholds would cross.
        if (j > 0) {
            double edge = (centres[j - 1] + centres[j]) / 2;
            mean = mean > edge ? mean : edge;
        }
        if (j < STEPS) {
            double edge = (centres[j] + centres[j + 1]) / 2;
            mean = mean < edge ? mean : edge;
        }
        updated[j] = mean;
        moved = moved + (mean - centres[j]) * (mean - centres[j]);
    }
    for (int j = 0; j < CLASSES; ++j) centres[j] = updated[j];
    for (int j = 0; j < 2 * STEPS; ++j) reached[j] = 0;
    state[0] += 1;
    // The thresholds that count are those of the last pass.
    if (moved / (width * width) <= tolerance || state[0] == rounds)
        state[1] = 1;
    else
        place_thresholds(centres, thresholds);
}

// A budget. The greatest offset t is searched for with spent(t) >= target, where spent(t) is the sum over j of
// steps[j] times the values at or above t + j. It is a value less some j: for every j there is a bisection over the
// keys of float32, all in the same passes, PIVOTS at once. `bounds` (2 * STEPS): for every j the greatest key known
// to spend enough and the least known not to; `tried` (TRIED, STEPS): thresholds; `spent` (TRIED).

#define PIVOTS 3
#define TRIED (STEPS * PIVOTS)

// The smallest double no less than first + j: a rounded sum would let in values that lie below it.
__device__ inline double sum_rounded_up(double first, double j) {
    double sum = first + j, rest = sum - first;
    double error = (first - (sum - rest)) + (j - rest);
    return error > 0 ? nextafter(sum, (double)infinity()) : sum;
}

__device__ inline u32 pivot_of(const u32* bounds, int p) {
    u64 part = (u64)(bounds[1] - bounds[0]) * (p + 1) / (PIVOTS + 1);
    return bounds[0] + (part ? (u32)part : 1u);
}

__device__ inline void place_tried(const u32* bounds, float* tried, u64* spent) {
    for (int j = 0; j < STEPS; ++j)
        for (int p = 0; p < PIVOTS; ++p) {
            double offset = (double)value_of(pivot_of(bounds + 2 * j, p)) - j;
            for (int i = 0; i < STEPS; ++i) tried[(j * PIVOTS + p) * STEPS + i] = rounded_up(sum_rounded_up(offset, i));
            spent[j * PIVOTS + p] = 0;
        }
}

extern "C" __global__ void budget_begin(const u32* extremes, u32* bounds, float* tried, u64* spent) {
    if (thread_index() != 0) return;
    for (int j = 0; j < STEPS; ++j) {
        bounds[2 * j] = extremes[0] - 1;
        bounds[2 * j + 1] = extremes[1] + 1;
    }
    place_tried(bounds, tried, spent);
}

extern "C" __global__ void budget_pass(
    const float* values, i64 n, const float* tried, const u64* steps, u64* spent) {
    float at[TRIED * STEPS];
    u64 each[STEPS], sums[TRIED];
    for (int k = 0; k < TRIED * STEPS; ++k) at[k] = tried[k];
    for (int i = 0; i < STEPS; ++i) each[i] = steps[i];
    for (int k = 0; k < TRIED; ++k) sums[k] = 0;
    for (i64 i = thread_index(); i < n; i += thread_count()) {
        float value = values[i];
        for (int k = 0; k < TRIED; ++k)
            for (int j = 0; j < STEPS; ++j) sums[k] += value >= at[k * STEPS + j] ? each[j] : 0;
    }
    for (int k = 0; k < TRIED; ++k) add_over_block(sums[k], &spent[k]);
}

extern "C" __global__ void budget_update(u64 target, u32* bounds, float* tried, u64* spent) {
    if (thread_index() != 0) return;
    for (int j = 0; j < STEPS; ++j) {
        u32* bound = bounds + 2 * j;
        if (bound[1] - bound[0] <= 1) continue;
        u32 enough = bound[0], not_enough = bound[1];
        for (int p = PIVOTS - 1; p >= 0; --p) {
            u32 pivot = pivot_of(bound, p);
            if (spent[j * PIVOTS + p] >= target) {
                enough = pivot;
                break;
            }
            not_enough = pivot;
        }
        bound[0] = enough;
        bound[1] = not_enough;
    }
    place_tried(bounds, tried, spent);
}

// All values tied at a threshold go one way: two sets are tried, with them and without.
extern "C" __global__ void budget_ties(const u32* extremes, const u32* bounds, float* tried, u64* spent) {
    if (thread_index() != 0) return;
    double offset = -infinity();
    for (int j = 0; j < STEPS; ++j) {
        double found = (double)value_of(bounds[2 * j]) - j;
        if (bounds[2 * j] >= extremes[0] && found > offset) offset = found;
    }
    for (int k = 0; k < TRIED; ++k) spent[k] = 0;
    for (int i = 0; i < TRIED * STEPS; ++i) tried[i] = infinity();
    for (int i = 0; i < STEPS; ++i) {
        double threshold = sum_rounded_up(offset, i);
        tried[i] = rounded_up(threshold);
        tried[STEPS + i] = rounded_up(nextafter(threshold, (double)infinity()));
    }
}

extern "C" __global__ void budget_end(u64 target, const float* tried, const u64* spent, float* thresholds) {
    if (thread_index() != 0) return;
    // The way that misses by less, the dearer one if both miss by the same.
    const float* chosen = spent[0] - target <= target - spent[1] ? tried : tried + STEPS;
    for (int i = 0; i < STEPS; ++i) thresholds[i] = chosen[i];
}
