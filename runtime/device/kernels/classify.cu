// From probabilities, (rows, P, columns), to difficulties and classes. P is 1 for two classes, else CLASSES.

#define PLANES (CLASSES == 2 ? 1 : CLASSES)

// The expected class: p_1 + 2 p_2 + ..., from left to right, every product and every sum rounded.
__device__ inline float difficulty_of(const float* probability, i64 i, int columns) {
    const float* p = probability + i / columns * columns * PLANES + i % columns;
    if (CLASSES == 2) return p[0];
    float expected = p[columns];
    for (int j = 2; j < CLASSES; ++j) expected = expected + (float)j * p[(i64)j * columns];
    return expected;
}

__device__ inline u8 class_of(float difficulty, const float* thresholds) {
    u8 reached = 0;
    for (int j = 0; j < STEPS; ++j) reached += difficulty >= thresholds[j];
    return reached;
}

// Difficulties of a region to their place in the picture's, `width` wide.
extern "C" __global__ void store_difficulties(
    const float* probability, int rows, int columns, int width, int top, int left, float* difficulties) {
    i64 i = thread_index();
    if (i >= (i64)rows * columns) return;
    difficulties[(top + i / columns) * width + left + i % columns] = difficulty_of(probability, i, columns);
}

extern "C" __global__ void classes_by_thresholds(
    const float* probability, int rows, int columns, const float* thresholds, u8* classes) {
    i64 i = thread_index();
    if (i >= (i64)rows * columns) return;
    classes[i] = class_of(difficulty_of(probability, i, columns), thresholds);
}

// The same from the picture's difficulties.
extern "C" __global__ void classes_of_region(
    const float* difficulties, int width, int top, int left, int rows, int columns, const float* thresholds,
    u8* classes) {
    i64 i = thread_index();
    if (i >= (i64)rows * columns) return;
    classes[i] = class_of(difficulties[(top + i / columns) * width + left + i % columns], thresholds);
}

// The class whose probability times weight is the greatest, the first of equal ones.
extern "C" __global__ void classes_by_argmax(
    const float* probability, int rows, int columns, const float* weights, u8* classes) {
    i64 i = thread_index();
    if (i >= (i64)rows * columns) return;
    const float* p = probability + i / columns * columns * PLANES + i % columns;
    u8 best = 0;
    float most = p[0] * weights[0];
    for (int j = 1; j < PLANES; ++j) {
        float weighted = p[(i64)j * columns] * weights[j];
        if (weighted > most) {
            most = weighted;
            best = j;
        }
    }
    classes[i] = best;
}
