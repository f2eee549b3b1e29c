// Per-pixel networks and the composing of pixels, of every instruction set beside the plain one, on buffers that end where
// their content does; backbones have a program of their own (backbone_test.cpp).
//
// Built with the sanitizers by `make sanitize`: what is read or written beyond an array, leaked or undefined ends it.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "engine.hpp"
#include "expect.hpp"
#include "failing_memory.hpp"
#include "random_network.hpp"

namespace {

using namespace random_network;

bool near(const Exact<float>& a, const Exact<float>& b) {
    float worst = 0, largest = 1;
    for (std::size_t i = 0; i < a.size; ++i) {
        worst = std::fmax(worst, std::fabs(a.data[i] - b.data[i]));
        largest = std::fmax(largest, std::fabs(b.data[i]));
    }
    return worst <= 2e-5f * largest;
}

void test_heads(const Sizes& classifier, const std::vector<Sizes>& upsamplers) {
    Random random;
    random.network.width = 8;
    random.network.backbone = "none";
    random.heads(classifier, upsamplers);
    const int M = static_cast<int>(upsamplers.size());
    const std::unique_ptr<pcsr::Engine> plain = scalar::open(random.network);
    const int sizes[][4] = {{1, 1, 1, 1}, {1, 1, 4, 4}, {3, 70, 3, 70}, {4, 17, 16, 68}, {5, 33, 12, 97}, {2, 5, 7, 200}};
    for (const auto& [h, w, H, W] : sizes) {
        Scene scene(random.network, h, w, H, W);
        const pcsr::Region regions[] = {scene.region, {H / 2, H, W / 3, W}, {0, (H + 1) / 2, 0, (W + 2) / 3}};
        for (const pcsr::Region& region : regions) {
            const std::size_t pixels = static_cast<std::size_t>(region.rows()) * region.columns();
            Exact<std::uint8_t> classes(pixels);
            for (std::size_t i = 0; i < pixels; ++i) {
                classes.data[i] = static_cast<std::uint8_t>((random_float() + 1) * 0.4999f * M);
            }
            const int P = M == 2 ? 1 : M;
            const auto run = [&](const pcsr::Engine& engine) {
                std::pair<Exact<float>, Exact<float>> made(Exact<float>(pixels * P), Exact<float>(pixels * 3));
                expect(engine.probabilities(scene.window, scene.place, region, made.first.data.get()), "finite");
                expect(engine.residuals(scene.window, scene.place, region, classes.data.get(), made.second.data.get()),
                       "finite");
                return made;
            };
            const auto expected = run(*plain);
            for (const auto& [name, open] : others()) {
                const auto found = run(*open(random.network));
                expect(near(found.first, expected.first), name + ": probabilities are those of plain C++");
                expect(near(found.second, expected.second), name + ": residuals are those of plain C++");
            }
        }
    }
}

template <class T>
void test_finish(pcsr::Sample sample, int channels, bool refined) {
    Random random;
    random.network.width = 8;
    random.network.backbone = "none";
    random.heads({3}, {{5}, {7}});
    const int sizes[][4] = {{1, 1, 1, 1}, {1, 2, 3, 5}, {3, 70, 3, 70}, {4, 17, 16, 68}, {5, 33, 12, 97}};
    for (const auto& [h, w, H, W] : sizes) {
        Exact<T> lr(static_cast<std::size_t>(h) * w * channels);
        for (std::size_t i = 0; i < lr.size; ++i) lr.data[i] = static_cast<T>((random_float() + 1) * 100);
        Exact<std::int32_t> low_rows(H), high_rows(H), low_columns(W), high_columns(W);
        const auto lie = [](int n, int N, Exact<std::int32_t>& low, Exact<std::int32_t>& high) {
            for (int i = 0; i < N; ++i) {
                low.data[i] = static_cast<std::int32_t>(static_cast<std::int64_t>(i) * n / N);
                high.data[i] = std::min(low.data[i] + 1, n - 1);
            }
        };
        lie(h, H, low_rows, high_rows);
        lie(w, W, low_columns, high_columns);
        const Exact<float> row_weights = random_floats(H), column_weights = random_floats(W);
        const std::size_t pixels = static_cast<std::size_t>(H) * W;
        const Exact<float> residual = random_floats(pixels * 3);
        Exact<std::uint8_t> classes(pixels);
        for (std::size_t i = 0; i < pixels; ++i) classes.data[i] = random_float() > 0.8f;
        const auto run = [&, w = w, H = H, W = W](const pcsr::Engine& engine) {
            // A sample more from row to row, but for the last.
            const std::size_t stride = static_cast<std::size_t>(W) * channels + 1;
            Exact<T> out(stride * H - 1);
            Exact<float> given(residual.size);
            std::memcpy(given.data.get(), residual.data.get(), residual.size * sizeof(float));
            const pcsr::Region region{0, H, 0, W};
            const pcsr::Patch patch{lr.data.get(),
                                    static_cast<std::int64_t>(w * channels * sizeof(T)),
                                    static_cast<std::int64_t>(channels * sizeof(T)),
                                    sizeof(T),
                                    0,
                                    0,
                                    w,
                                    channels,
                                    sample,
                                    refined,
                                    low_rows.data.get(),
                                    high_rows.data.get(),
                                    row_weights.data.get(),
                                    low_columns.data.get(),
                                    high_columns.data.get(),
                                    column_weights.data.get(),
                                    region,
                                    region,
                                    out.data.get(),
                                    static_cast<std::int64_t>(stride * sizeof(T))};
            engine.finish(patch, given.data.get(), classes.data.get());
            return out;
        };
        const Exact<T> expected = run(*scalar::open(random.network));
        for (const auto& [name, open] : others()) {
            const Exact<T> found = run(*open(random.network));
            double worst = 0;
            for (std::size_t i = 0; i < found.size; ++i) {
                worst = std::fmax(worst, std::fabs(static_cast<double>(found.data[i]) - expected.data[i]));
            }
            expect(worst <= (sample == pcsr::Sample::real ? 1e-3 : 1), name + ": pixels are those of plain C++");
        }
    }
}

void test_passes() {
    Random random;
    random.network.width = 8;
    random.network.backbone = "none";
    random.heads({3}, {{5}, {7}});
    for (const std::int64_t n : {1, 7, 16, 17, 255, 256, 257, 700000}) {
        const Exact<float> values = random_floats(n);
        const pcsr::Bins bins{-1.0, 8.0, 16};
        Exact<std::uint8_t> wanted(bins.count);
        for (int i = 0; i < bins.count; ++i) wanted.data[i] = i % 3 == 0;
        for (const auto& [name, open] : others()) {
            const std::unique_ptr<pcsr::Engine> engine = open(random.network);
            Exact<float> extremes(2);
            Exact<std::int64_t> counts(bins.count);
            Exact<double> sums(bins.count);
            engine->extremes(values.data.get(), n, extremes.data.get());
            engine->histogram(values.data.get(), n, bins, 3, counts.data.get(), sums.data.get());
            std::int64_t among = 0, all = 0;
            for (int i = 0; i < bins.count; ++i) {
                all += counts.data[i];
                if (wanted.data[i]) among += counts.data[i];
            }
            Exact<float> inside(among);
            engine->inside(values.data.get(), n, bins, 3, wanted.data.get(), inside.data.get());
            const auto [low, high] = std::minmax_element(values.data.get(), values.data.get() + n);
            expect(extremes.data[0] == *low && extremes.data[1] == *high, name + ": extremes");
            expect(all == n, name + ": every value is counted once");
            for (int i = 0; i < bins.count; ++i) counts.data[i] = 0;
            engine->histogram(inside.data.get(), among, bins, 3, counts.data.get(), sums.data.get());
            for (int i = 0; i < bins.count; ++i) {
                expect(wanted.data[i] || counts.data[i] == 0, name + ": only what is wanted is found");
            }
        }
    }
}

void test_memory_that_ends_is_an_exception(Open open) {
    Random random;
    random.network.width = 8;
    random.network.backbone = "none";
    random.heads({3}, {{5}, {7}});
    Scene scene(random.network, 3, 20, 6, 40);
    Exact<float> probabilities(6 * 40), residuals(6 * 40 * 3);
    Exact<std::uint8_t> classes(6 * 40);
    for (std::size_t i = 0; i < classes.size; ++i) classes.data[i] = i % 2;
    const long failures = memory::count_failures([&] {
        const std::unique_ptr<pcsr::Engine> engine = open(random.network);
        engine->probabilities(scene.window, scene.place, scene.region, probabilities.data.get());
        engine->residuals(scene.window, scene.place, scene.region, classes.data.get(), residuals.data.get());
    });
    // The engine, weights, and the buffers of both calls at the least.
    expect(failures > 10, "memory that ends is noticed");
}

void test_refusals() {
    const std::function<void(Random&)> spoils[] = {
        [](Random& random) { random.network.weights.erase("upsampler_1.layer1.weight"); },
        [](Random& random) { random.network.weights["upsampler_1.layer1.bias"].shape = {4}; },
        [](Random& random) { random.network.heads.resize(2); },
    };
    for (const auto& spoil : spoils) {
        Random random;
        random.network.width = 8;
        random.heads({3}, {{5}, {7}});
        spoil(random);
        bool refused = false;
        try {
            scalar::open(random.network);
        } catch (const std::invalid_argument&) {
            refused = true;
        }
        expect(refused, "a network that contradicts itself is refused");
    }
}

}  // namespace

int main() {
    test_heads({10, 10}, {{20, 20, 20}, {74, 74, 74, 74}});
    test_heads({}, {{}, {}});
    test_heads({7}, {{1}, {33, 2}});
    test_heads({3}, {{6}, {10, 11}, {64, 40, 8}});
    test_heads({16, 31}, {{17}, {}, {65, 9}, {300}});
    for (const bool refined : {false, true}) {
        for (const int channels : {1, 3, 4}) {
            test_finish<std::uint8_t>(pcsr::Sample::byte, channels, refined);
            test_finish<std::uint16_t>(pcsr::Sample::word, channels, refined);
            test_finish<float>(pcsr::Sample::real, channels, refined);
        }
    }
    test_passes();
    test_memory_that_ends_is_an_exception(scalar::open);
    for (const auto& other : others()) test_memory_that_ends_is_an_exception(other.second);
    test_refusals();
    if (failures == 0) std::printf("all right\n");
    return failures == 0 ? 0 : 1;
}
