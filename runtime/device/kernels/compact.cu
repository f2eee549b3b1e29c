// The pixels of each class but 0, in row-major order, class after class. Two passes over chunks of THREADS * ITEMS
// pixels with a scan of their counts between, so the order is always the same.

#define ITEMS 16

// counts (chunks, CLASSES): pixels of each class in each chunk.
extern "C" __global__ void count_classes(const u8* classes, int n, u32* counts) {
    __shared__ u32 seen[CLASSES];
    if (threadIdx.x < CLASSES) seen[threadIdx.x] = 0;
    __syncthreads();
    u32 own[CLASSES];
    for (int j = 0; j < CLASSES; ++j) own[j] = 0;
    i64 first = thread_index() * ITEMS;
    for (int k = 0; k < ITEMS; ++k)
        if (first + k < n) {
            u8 found = classes[first + k];
            for (int j = 0; j < CLASSES; ++j) own[j] += found == j;
        }
    for (int j = 0; j < CLASSES; ++j) atomicAdd(&seen[j], own[j]);
    __syncthreads();
    if (threadIdx.x < CLASSES) counts[(i64)blockIdx.x * CLASSES + threadIdx.x] = seen[threadIdx.x];
}

// counts becomes where each chunk's pixels of each class begin; totals (CLASSES): pixels of each class.
extern "C" __global__ void scan_counts(int chunks, u32* counts, int* totals) {
    __shared__ u32 sums[CLASSES];
    u32 j = threadIdx.x;
    if (j < CLASSES) {
        u32 sum = 0;
        for (int k = 0; k < chunks; ++k) sum += counts[(i64)k * CLASSES + j];
        sums[j] = sum;
        totals[j] = (int)sum;
    }
    __syncthreads();
    if (j < CLASSES) {
        u32 start = 0;
        for (u32 i = 1; i < j; ++i) start += sums[i];
        for (int k = 0; k < chunks; ++k) {
            u32 count = counts[(i64)k * CLASSES + j];
            counts[(i64)k * CLASSES + j] = start;
            start += count;
        }
    }
}

// For each routed pixel of a region: its nearest input pixel in a table that begins at (top, left), its row and its
// column in the region. `nearest_rows` and `nearest_columns` begin at the region's corner.
extern "C" __global__ void compact_classes(
    const u8* classes, int n, int columns, const u32* starts, const int* nearest_rows, const int* nearest_columns,
    int top, int left, int table_columns, int* pixel, int* row, int* column) {
    __shared__ u32 before[THREADS];
    i64 first = thread_index() * ITEMS;
    u8 found[ITEMS];
    for (int k = 0; k < ITEMS; ++k) found[k] = first + k < n ? classes[first + k] : 0;
    for (int j = 1; j < CLASSES; ++j) {
        u32 own = 0;
        for (int k = 0; k < ITEMS; ++k) own += found[k] == j;
        before[threadIdx.x] = own;
        __syncthreads();
        for (u32 reach = 1; reach < THREADS; reach *= 2) {
            u32 sum = before[threadIdx.x] + (threadIdx.x >= reach ? before[threadIdx.x - reach] : 0);
            __syncthreads();
            before[threadIdx.x] = sum;
            __syncthreads();
        }
        u32 at = starts[(i64)blockIdx.x * CLASSES + j] + before[threadIdx.x] - own;
        for (int k = 0; k < ITEMS; ++k)
            if (found[k] == j) {
                int y = (int)((first + k) / columns), x = (int)((first + k) % columns);
                pixel[at] = (nearest_rows[y] - top) * table_columns + nearest_columns[x] - left;
                row[at] = y;
                column[at] = x;
                ++at;
            }
        __syncthreads();
    }
}

// rgb (n, 3) of routed pixels into a region's residual (rows, 3, columns).
extern "C" __global__ void scatter_rgb(
    const float* rgb, const int* row, const int* column, int n, int columns, float* residual) {
    i64 i = thread_index();
    if (i >= n) return;
    for (int c = 0; c < 3; ++c) residual[((i64)row[i] * 3 + c) * columns + column[i]] = rgb[i * 3 + c];
}
