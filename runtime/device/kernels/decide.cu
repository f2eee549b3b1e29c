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

// A budget. For every class j + 1 the greatest value is searched for that at least wanted[j] values reach: a bisection
// over the keys of float32, for all classes in the same passes, PIVOTS at once. `bounds` (2 * STEPS): for every
// class the greatest key known to be reached by enough, and the least known not to; `tried` and `reached`
// (STEPS * PIVOTS): thresholds, and how many values reach them.

#define PIVOTS 3
#define TRIED (STEPS * PIVOTS)

__device__ inline u32 pivot_of(const u32* bounds, int p) {
    u64 part = (u64)(bounds[1] - bounds[0]) * (p + 1) / (PIVOTS + 1);
    return bounds[0] + (part ? (u32)part : 1u);
}

__device__ inline void place_tried(const u32* bounds, float* tried, u64* reached) {
    for (int j = 0; j < STEPS; ++j)
        for (int p = 0; p < PIVOTS; ++p) {
            tried[j * PIVOTS + p] = value_of(pivot_of(bounds + 2 * j, p));
            reached[j * PIVOTS + p] = 0;
        }
}

extern "C" __global__ void budget_begin(const u32* extremes, u32* bounds, float* tried, u64* reached) {
    if (thread_index() != 0) return;
    for (int j = 0; j < STEPS; ++j) {
        bounds[2 * j] = extremes[0] - 1;
        bounds[2 * j + 1] = extremes[1] + 1;
    }
    place_tried(bounds, tried, reached);
}

extern "C" __global__ void budget_pass(const float* values, i64 n, const float* tried, u64* reached) {
    float at[TRIED];
    u32 counts[TRIED];
    for (int k = 0; k < TRIED; ++k) {
        at[k] = tried[k];
        counts[k] = 0;
    }
    for (i64 i = thread_index(); i < n; i += thread_count()) {
        float value = values[i];
        for (int k = 0; k < TRIED; ++k) counts[k] += value >= at[k] ? 1 : 0;
    }
    for (int k = 0; k < TRIED; ++k) add_over_block(counts[k], &reached[k]);
}

extern "C" __global__ void budget_update(const u64* wanted, u32* bounds, float* tried, u64* reached) {
    if (thread_index() != 0) return;
    for (int j = 0; j < STEPS; ++j) {
        u32* bound = bounds + 2 * j;
        if (bound[1] - bound[0] <= 1) continue;
        u32 enough = bound[0], not_enough = bound[1];
        for (int p = PIVOTS - 1; p >= 0; --p) {
            u32 pivot = pivot_of(bound, p);
            if (reached[j * PIVOTS + p] >= wanted[j]) {
                enough = pivot;
                break;
            }
            not_enough = pivot;
        }
        bound[0] = enough;
        bound[1] = not_enough;
    }
    place_tried(bounds, tried, reached);
}

// All values tied at a threshold go one way: for each class two are tried, with them and without.
extern "C" __global__ void budget_ties(const u32* bounds, float* tried, u64* reached) {
    if (thread_index() != 0) return;
    for (int k = 0; k < TRIED; ++k) {
        tried[k] = infinity();
        reached[k] = 0;
    }
    for (int j = 0; j < STEPS; ++j) {
        tried[j * PIVOTS] = value_of(bounds[2 * j]);
        tried[j * PIVOTS + 1] = value_of(bounds[2 * j] + 1);
    }
}

extern "C" __global__ void budget_end(
    const u64* wanted, const float* tried, const u64* reached, float* thresholds) {
    if (thread_index() != 0) return;
    for (int j = 0; j < STEPS; ++j) {
        // The way that misses by less, the dearer one if both miss by the same.
        bool dearer = reached[j * PIVOTS] - wanted[j] <= wanted[j] - reached[j * PIVOTS + 1];
        thresholds[j] = wanted[j] == 0 ? infinity() : tried[j * PIVOTS + (dearer ? 0 : 1)];
    }
}
