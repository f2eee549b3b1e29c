// From residuals to the picture: bilinear base, refinement, grey and alpha, rounding; one thread an output pixel.

// One position of an axis: the pair of input pixels and the weight of the second.
struct Between {
    int low, high;
    float weight;
};

template <typename T>
__device__ inline float base_of(const T* picture, int width, int channels, int c, Between y, Between x) {
    const T* above = picture + (i64)y.low * width * channels + c;
    const T* below = picture + (i64)y.high * width * channels + c;
    i64 left = (i64)x.low * channels, right = (i64)x.high * channels;
    float rest_x = 1.0f - x.weight, rest_y = 1.0f - y.weight;
    float first = level(above[left]) * rest_x + level(above[right]) * x.weight;
    float second = level(below[left]) * rest_x + level(below[right]) * x.weight;
    return first * rest_y + second * y.weight;
}

__device__ inline float clamped(float colour, float full) {
    float rounded = rintf(colour * full);
    return rounded < 0.0f ? 0.0f : rounded > full ? full : rounded;
}
__device__ inline void store(float colour, u8* out) { *out = (u8)clamped(colour, 255.0f); }
__device__ inline void store(float colour, u16* out) { *out = (u16)clamped(colour, 65535.0f); }
__device__ inline void store(float colour, float* out) { *out = colour; }

// A block: residual (rows, 3, columns) and classes (rows, columns) of the region whose corner on the output is
// (top, left); written are `inner_rows` by `inner_columns` pixels from (inner_top, inner_left) of the region on.
// counts (CLASSES) counts them; the flag is raised where a colour is NaN or infinite.
template <typename T>
__device__ inline void finish(
    const T* picture, int width, int channels, const int* low_y, const int* high_y, const float* weight_y,
    const int* low_x, const int* high_x, const float* weight_x, const float* residual, const u8* classes, int top,
    int left, int columns, int inner_top, int inner_left, int inner_rows, int inner_columns, int H, int W,
    int refine, T* image, u8* class_map, u64* counts, int* flag) {
    __shared__ u32 seen[CLASSES];
    if (threadIdx.x < CLASSES) seen[threadIdx.x] = 0;
    __syncthreads();
    i64 i = thread_index();
    if (i < (i64)inner_rows * inner_columns) {
        int y = inner_top + (int)(i / inner_columns), x = inner_left + (int)(i % inner_columns);
        int Y = top + y, X = left + x;
        u8 own = classes[(i64)y * columns + x];
        // Light pixels that touch a heavier one are averaged, but not on the picture's border.
        bool touched = false;
        if (refine && own == 0 && Y > 0 && Y < H - 1 && X > 0 && X < W - 1)
            for (int dy = -1; dy <= 1; ++dy)
                for (int dx = -1; dx <= 1; ++dx) touched |= classes[(i64)(y + dy) * columns + x + dx] != 0;
        int reach = touched ? 1 : 0;
        float colour[3], alpha = 0.0f;
        for (int c = 0; c < 3; ++c) {
            float mean = 0.0f;
            for (int dy = -reach; dy <= reach; ++dy) {
                Between row = {low_y[Y + dy], high_y[Y + dy], weight_y[Y + dy]};
                float across = 0.0f;
                for (int dx = -reach; dx <= reach; ++dx) {
                    Between column = {low_x[X + dx], high_x[X + dx], weight_x[X + dx]};
                    float base = base_of(picture, width, channels, channels < 3 ? 0 : c, row, column);
                    float sum = residual[((i64)(y + dy) * 3 + c) * columns + x + dx] + base;
                    across = dx == -reach ? sum : across + sum;
                }
                mean = dy == -reach ? across : mean + across;
            }
            colour[c] = touched ? mean * (float)(1.0 / 9.0) : mean;
            if (!is_finite(colour[c])) atomicOr(flag, 1);
        }
        if (channels == 4) {
            Between row = {low_y[Y], high_y[Y], weight_y[Y]}, column = {low_x[X], high_x[X], weight_x[X]};
            alpha = base_of(picture, width, channels, 3, row, column);
        }
        i64 pixel = (i64)Y * W + X;
        T* out = image + pixel * channels;
        if (channels == 1) {
            store((colour[0] + colour[1] + colour[2]) / 3.0f, out);
        } else {
            for (int c = 0; c < 3; ++c) store(colour[c], out + c);
            if (channels == 4) store(alpha, out + 3);
        }
        class_map[pixel] = own;
        atomicAdd(&seen[own], 1u);
    }
    __syncthreads();
    if (threadIdx.x < CLASSES && seen[threadIdx.x]) atomicAdd(&counts[threadIdx.x], (u64)seen[threadIdx.x]);
}

#define FINISH(name, T)                                                                                            \
    extern "C" __global__ void name(                                                                               \
        const T* picture, int width, int channels, const int* low_y, const int* high_y, const float* weight_y,     \
        const int* low_x, const int* high_x, const float* weight_x, const float* residual, const u8* classes,      \
        int top, int left, int columns, int inner_top, int inner_left, int inner_rows, int inner_columns, int H,   \
        int W, int refine, T* image, u8* class_map, u64* counts, int* flag) {                                      \
        finish<T>(picture, width, channels, low_y, high_y, weight_y, low_x, high_x, weight_x, residual, classes,   \
                  top, left, columns, inner_top, inner_left, inner_rows, inner_columns, H, W, refine, image,       \
                  class_map, counts, flag);                                                                        \
    }
FINISH(finish_uint8, u8)
FINISH(finish_uint16, u16)
FINISH(finish_float32, float)
