#include "finish.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <type_traits>

#include "buffer.hpp"
#include "lanes.hpp"

namespace PCSR_ISA {
namespace {

// Colours of the residual.
constexpr int kColours = 3;

// Of n values that may be fewer than lanes; the others are 0.
PCSR_INLINE Vec load_some(const float* from, int n) {
    if (n >= kLanes) return load(from);
    float lanes[kLanes] = {};
    std::memcpy(lanes, from, static_cast<std::size_t>(n) * sizeof(float));
    return load(lanes);
}

PCSR_INLINE void store_some(float* to, Vec values, int n) {
    if (n >= kLanes) return store(to, values);
    float lanes[kLanes];
    store(lanes, values);
    std::memcpy(to, lanes, static_cast<std::size_t>(n) * sizeof(float));
}

// Values at n ascending indices, which begin at `first`. There are kLanes values beyond the last.
PCSR_INLINE Vec at(const float* values, std::int32_t first, const std::int32_t* index, int n) {
#if PCSR_LANES > 1
    if (n >= kLanes && index[kLanes - 1] - index[0] < kLanes) {
        Mask order;
        std::memcpy(&order, index, sizeof order);
        return permute(load(values + (index[0] - first)), order - index[0]);
    }
#endif
    float gathered[kLanes];
    for (int i = 0; i < kLanes; ++i) gathered[i] = values[index[std::min(i, n - 1)] - first];
    return load(gathered);
}

// Between two values; a weight of 0 gives the first.
PCSR_INLINE Vec between(Vec first, Vec second, Vec weight) {
    return multiply_add(second, weight, first * (broadcast(1.0f) - weight));
}

template <class Sample>
constexpr float kFullScale = std::is_same_v<Sample, float> ? 1.0f : static_cast<float>(static_cast<Sample>(-1));

// Input rows of a patch, interpolated to its output columns.
template <class Sample>
class Rows {
   public:
    explicit Rows(const pcsr::Patch& patch)
        : patch_(patch),
          width_(padded(patch.region.columns())),
          planar_(static_cast<std::size_t>(patch.lr_columns) + kLanes),
          across_{Buffer(static_cast<std::size_t>(patch.channels) * width_),
                  Buffer(static_cast<std::size_t>(patch.channels) * width_)} {}

    // (channels, width) of an input row; stays until two others have been asked for.
    const float* row(std::int32_t number) {
        for (int slot = 0; slot < 2; ++slot) {
            if (held_[slot] == number) {
                next_ = 1 - slot;
                return across_[slot].data();
            }
        }
        const int slot = next_;
        held_[slot] = number;
        next_ = 1 - slot;
        make(number, across_[slot].data());
        return across_[slot].data();
    }

    std::size_t width() const { return width_; }

   private:
    static std::size_t padded(int columns) { return static_cast<std::size_t>((columns + kLanes - 1) / kLanes) * kLanes; }

    void make(std::int32_t number, float* out) {
        const int channels = patch_.channels, columns = patch_.region.columns(), left = patch_.region.left;
        const std::uint8_t* row = static_cast<const std::uint8_t*>(patch_.lr) + (number - patch_.lr_top) * patch_.lr_row;
        for (int c = 0; c < channels; ++c) {
            for (int j = 0; j < patch_.lr_columns; ++j) {
                Sample sample;  // which may lie at any address
                std::memcpy(&sample, row + j * patch_.lr_pixel + c * patch_.lr_channel, sizeof sample);
                planar_.data()[j] = static_cast<float>(sample) / kFullScale<Sample>;
            }
            for (int x = 0; x < columns; x += kLanes) {
                const int n = columns - x;
                const Vec low = at(planar_.data(), patch_.lr_left, patch_.low_columns + left + x, n);
                const Vec high = at(planar_.data(), patch_.lr_left, patch_.high_columns + left + x, n);
                store(out + c * width_ + x, between(low, high, load_some(patch_.column_weights + left + x, n)));
            }
        }
    }

    const pcsr::Patch& patch_;
    std::size_t width_;
    Buffer planar_;
    Buffer across_[2];
    std::int32_t held_[2] = {-1, -1};
    int next_ = 0;
};

// Add the base to the residual; alpha, which has none, goes to an array of its own.
template <class Sample>
void add_base(const pcsr::Patch& patch, float* residual, float* alpha) {
    Rows<Sample> rows(patch);
    const pcsr::Region& region = patch.region;
    const int columns = region.columns();
    for (int y = 0; y < region.rows(); ++y) {
        const int Y = region.top + y;
        const float* low = rows.row(patch.low_rows[Y]);
        const float* high = rows.row(patch.high_rows[Y]);
        const Vec weight = broadcast(patch.row_weights[Y]);
        for (int x = 0; x < columns; x += kLanes) {
            const int n = columns - x;
            const auto base = [&](int channel) {
                const std::size_t where = channel * rows.width() + x;
                return between(load(low + where), load(high + where), weight);
            };
            for (int c = 0; c < kColours; ++c) {
                float* colour = residual + (static_cast<std::size_t>(y) * kColours + c) * columns + x;
                store_some(colour, load_some(colour, n) + base(patch.channels == 1 ? 0 : c), n);
            }
            if (patch.channels == 4) store_some(alpha + static_cast<std::size_t>(y) * columns + x, base(3), n);
        }
    }
}

// Which pixels of a row are light and touch a heavier one; those at the region's border are not looked at.
// classes: of the row above theirs.
void find_touched(const std::uint8_t* classes, int columns, std::uint8_t* touched) {
    const std::uint8_t *above = classes, *here = classes + columns, *below = here + columns;
    for (int x = 1; x < columns - 1; ++x) {
        const int around = above[x - 1] | above[x] | above[x + 1] | here[x - 1] | here[x + 1] | below[x - 1] | below[x] |
                           below[x + 1];
        touched[x] = here[x] == 0 && around != 0;
    }
}

// The mean of the 3x3 pixels around n pixels. colour: of the first of them.
Vec mean_around(const float* colour, std::ptrdiff_t row, int n) {
    Vec sum = broadcast(0.0f);
    for (int dy = -1; dy <= 1; ++dy) {
        const float* at = colour + dy * row;
        const Vec across = load_some(at - 1, n) + load_some(at, n) + load_some(at + 1, n);
        sum = dy == -1 ? across : sum + across;
    }
    return sum * broadcast(1.0f / 9.0f);
}

// Added to a float below it, it leaves the nearest whole number, half to even, in the lowest bits.
constexpr float kShift = 8388608.0f;

template <class Sample>
PCSR_INLINE Vec shifted(Vec values) {
    const Vec full = broadcast(kFullScale<Sample>);
    return minimum(maximum(values * full, broadcast(0.0f)), full) + broadcast(kShift);
}

template <class Sample>
PCSR_INLINE void convert(Vec values, Sample* out) {
    if constexpr (std::is_same_v<Sample, float>) {
        store(out, values);
    } else {
        float lanes[kLanes];
        store(lanes, shifted<Sample>(values) - broadcast(kShift));
        for (int i = 0; i < kLanes; ++i) out[i] = static_cast<Sample>(static_cast<std::int32_t>(lanes[i]));
    }
}

#if PCSR_LANES > 1
// A vector of 8-bit RGB pixels.
PCSR_INLINE void store_rgb(const Vec (&values)[kColours], std::uint8_t* out) {
    const Mask none = (Mask)broadcast(kShift);
    const Mask red = (Mask)shifted<std::uint8_t>(values[0]) - none, green = (Mask)shifted<std::uint8_t>(values[1]) - none,
               blue = (Mask)shifted<std::uint8_t>(values[2]) - none;
    const Mask packed = red | (green << 8) | (blue << 16);
    const __m128i order = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
    // Four pixels of 16 bytes become 12; all but the last may write into the place of the next.
    constexpr int kQuads = kLanes / 4;
    std::uint8_t bytes[4 * kLanes];
    std::memcpy(bytes, &packed, sizeof bytes);
    PCSR_UNROLL
    for (int quad = 0; quad < kQuads; ++quad) {
        const __m128i four = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + 16 * quad));
        const __m128i twelve = _mm_shuffle_epi8(four, order);
        if (quad < kQuads - 1) {
            _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 12 * quad), twelve);
        } else {
            std::memcpy(out + 12 * quad, &twelve, 12);
        }
    }
}
#endif

template <class Sample>
void store_pixels(const pcsr::Patch& patch, const float* colours, const float* alpha, const std::uint8_t* classes) {
    const pcsr::Region &region = patch.region, &inner = patch.inner;
    const int columns = region.columns(), channels = patch.channels;
    const int first = inner.left - region.left, last = inner.right - region.left;
    const std::ptrdiff_t row = static_cast<std::ptrdiff_t>(kColours) * columns;
    const std::unique_ptr<std::uint8_t[]> touched(new std::uint8_t[columns]());
    for (int Y = inner.top; Y < inner.bottom; ++Y) {
        const int y = Y - region.top;
        const float* colour = colours + y * row;
        const bool refined = patch.refined && y > 0 && y < region.rows() - 1;
        if (refined) find_touched(classes + static_cast<std::size_t>(y - 1) * columns, columns, touched.get());
        Sample* out = reinterpret_cast<Sample*>(static_cast<std::uint8_t*>(patch.out) + (Y - inner.top) * patch.out_stride);
        for (int x = first; x < last; x += kLanes) {
            const int n = std::min(kLanes, last - x);
            Vec values[kColours];
            for (int c = 0; c < kColours; ++c) values[c] = load_some(colour + c * columns + x, n);
            if (refined && std::memchr(touched.get() + x, 1, static_cast<std::size_t>(n)) != nullptr) {
                // Pixels at the border have no column beside them, and are not touched.
                const int begin = std::max(x, 1), end = std::min(x + n, columns - 1);
                for (int c = 0; c < kColours; ++c) {
                    float means[kLanes], plain[kLanes];
                    store(means, mean_around(colour + c * columns + begin, row, end - begin));
                    store(plain, values[c]);
                    for (int i = begin; i < end; ++i) {
                        if (touched[i]) plain[i - x] = means[i - begin];
                    }
                    values[c] = load(plain);
                }
            }
#if PCSR_LANES > 1
            if constexpr (std::is_same_v<Sample, std::uint8_t>) {
                if (channels == kColours && n == kLanes) {
                    store_rgb(values, out + static_cast<std::ptrdiff_t>(x - first) * kColours);
                    continue;
                }
            }
#endif
            Sample samples[4][kLanes];
            if (channels == 1) {
                convert((values[0] + values[1] + values[2]) / broadcast(3.0f), samples[0]);
            } else {
                for (int c = 0; c < kColours; ++c) convert(values[c], samples[c]);
                if (channels == 4) convert(load_some(alpha + static_cast<std::size_t>(y) * columns + x, n), samples[3]);
            }
            Sample* pixel = out + static_cast<std::ptrdiff_t>(x - first) * channels;
            for (int i = 0; i < n; ++i) {
                for (int c = 0; c < channels; ++c) *pixel++ = samples[c][i];
            }
        }
    }
}

template <class Sample>
void finish_samples(const pcsr::Patch& patch, float* residual, const std::uint8_t* classes) {
    const std::size_t pixels = static_cast<std::size_t>(patch.region.rows()) * patch.region.columns();
    Buffer alpha(patch.channels == 4 ? pixels : 0);
    add_base<Sample>(patch, residual, alpha.data());
    store_pixels<Sample>(patch, residual, alpha.data(), classes);
}

}  // namespace

void finish(const pcsr::Patch& patch, float* residual, const std::uint8_t* classes) {
    switch (patch.sample) {
        case pcsr::Sample::byte: return finish_samples<std::uint8_t>(patch, residual, classes);
        case pcsr::Sample::word: return finish_samples<std::uint16_t>(patch, residual, classes);
        case pcsr::Sample::real: return finish_samples<float>(patch, residual, classes);
    }
}

}  // namespace PCSR_ISA
