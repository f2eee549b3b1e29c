// From the picture to the graphs' inputs.

// A window of the picture, (rows, columns, channels), as planar RGB (3, rows, columns). Grey becomes three equal
// channels, alpha is left out.
template <typename T>
__device__ inline void window_of(
    const T* picture, int width, int channels, int top, int left, int rows, int columns, float* lr) {
    i64 i = thread_index(), pixels = (i64)rows * columns;
    if (i >= pixels) return;
    const T* pixel = picture + ((top + i / columns) * width + left + i % columns) * channels;
    for (int c = 0; c < 3; ++c) lr[c * pixels + i] = level(pixel[channels < 3 ? 0 : c]);
}

#define WINDOW(name, T)                                                                                      \
    extern "C" __global__ void name(const T* picture, int width, int channels, int top, int left, int rows, \
                                    int columns, float* lr) {                                                \
        window_of<T>(picture, width, channels, top, left, rows, columns, lr);                                \
    }
WINDOW(window_uint8, u8)
WINDOW(window_uint16, u16)
WINDOW(window_float32, float)

// Terms of n positions of an axis: slope * relative + constant, (n, channels), or (channels, n) where `across`.
extern "C" __global__ void axis_terms(
    const float* relative, const float* slope, const float* constant, int n, int channels, int across, float* terms) {
    i64 i = thread_index();
    if (i >= (i64)n * channels) return;
    int at = across ? i % n : i / channels, c = across ? i / n : i % channels;
    terms[i] = relative[at] * slope[c] + constant[c];
}

// Indices into a table that begins at `first`.
extern "C" __global__ void shift_indices(const int* nearest, int n, int first, int* indices) {
    i64 i = thread_index();
    if (i < n) indices[i] = nearest[i] - first;
}

// Raises the flag where a value is NaN or infinite.
extern "C" __global__ void find_nonfinite_float32(const float* values, i64 n, int* flag) {
    for (i64 i = thread_index(); i < n; i += thread_count())
        if (!is_finite(values[i])) atomicOr(flag, 1);
}

// The same for half precision, by its bits.
extern "C" __global__ void find_nonfinite_float16(const u16* values, i64 n, int* flag) {
    for (i64 i = thread_index(); i < n; i += thread_count())
        if ((values[i] & 0x7c00) == 0x7c00) atomicOr(flag, 1);
}
