// Blocks of a picture on several threads against all of it in one block on one, to the bit, in every instruction set.
//
// Built by `make sanitize`: with the address and undefined-behaviour sanitizers, on arrays that end where their content
// does; and with the thread sanitizer, for the plain instruction set, where the argument `threads` leaves out what has one.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "engine.hpp"
#include "expect.hpp"
#include "failing_memory.hpp"
#include "random_network.hpp"

namespace {

using namespace random_network;

using Regions = std::vector<pcsr::Region>;

Regions cut(const pcsr::Region& whole, int rows, int columns) {
    Regions made;
    for (int top = whole.top; top < whole.bottom; top += rows) {
        for (int left = whole.left; left < whole.right; left += columns) {
            made.push_back({top, std::min(top + rows, whole.bottom), left, std::min(left + columns, whole.right)});
        }
    }
    return made;
}

// A network, a picture of RGBA samples of any size whose rows are further apart than they are long, and what is asked of it.
struct Job {
    static constexpr int h = 7, w = 23, H = 18, W = 61, channels = 4;

    Random random;
    std::unique_ptr<Scene> scene;
    pcsr::Sample sample;
    std::size_t bytes;
    Exact<std::uint8_t> lr;
    Exact<std::int32_t> low_rows{H}, high_rows{H}, low_columns{W}, high_columns{W};
    Exact<float> row_weights{H}, column_weights{W};
    Exact<float> thresholds{2}, weights{3};
    bool refined = false, weighted = false;
    const float* difficulties = nullptr;

    Job(pcsr::Sample sample, std::size_t bytes)
        : sample(sample), bytes(bytes), lr((h * (w * channels + 3) - 3) * bytes) {
        random.network.width = 8;
        random.network.backbone = "none";
        random.heads({3}, {{5}, {7}, {9, 4}});
        scene = std::make_unique<Scene>(random.network, h, w, H, W);
        // Every other bit pattern of bytes would do for integers; floats are to be finite.
        for (std::size_t i = 0; i < lr.size / bytes; ++i) {
            const float value = random_float();
            if (sample == pcsr::Sample::real) std::memcpy(lr.data.get() + i * bytes, &value, sizeof value);
            for (std::size_t b = 0; sample != pcsr::Sample::real && b < bytes; ++b) {
                lr.data[i * bytes + b] = static_cast<std::uint8_t>(100 + 100 * value);
            }
        }
        const auto lie = [](int n, int N, Exact<std::int32_t>& low, Exact<std::int32_t>& high, Exact<float>& weight) {
            for (int i = 0; i < N; ++i) {
                low.data[i] = static_cast<std::int32_t>(static_cast<std::int64_t>(i) * n / N);
                high.data[i] = std::min(low.data[i] + 1, n - 1);
                weight.data[i] = static_cast<float>(i % 7) / 7.0f;
            }
        };
        lie(h, H, low_rows, high_rows, row_weights);
        lie(w, W, low_columns, high_columns, column_weights);
        thresholds.data[0] = 0.6f;
        thresholds.data[1] = 1.1f;
        for (int j = 0; j < 3; ++j) weights.data[j] = 1.0f - 0.2f * static_cast<float>(j);
    }

    void spoil(int Y, int X) {
        const int pixel = scene->rows.data[Y] * w + scene->columns.data[X];
        for (const pcsr::Head& head : random.network.heads) {
            scene->tables.data[static_cast<std::size_t>(pixel) * random.network.row + head.offset] = NAN;
        }
    }
};

struct Painted {
    Exact<std::uint8_t> out, map;
    Exact<std::int64_t> counts{3};
    Exact<double> seconds{3};
    int first = 0;

    bool operator==(const Painted& other) const {
        return std::memcmp(out.data.get(), other.out.data.get(), out.size) == 0 &&
               std::memcmp(map.data.get(), other.map.data.get(), map.size) == 0 &&
               std::equal(counts.data.get(), counts.data.get() + 3, other.counts.data.get());
    }
};

Painted paint(const pcsr::Engine& engine, const Job& job, const pcsr::Region& inner, const Regions& blocks, int threads) {
    // A sample more from row to row, and a class.
    const std::size_t row = (static_cast<std::size_t>(inner.columns()) * Job::channels + 1) * job.bytes;
    const std::size_t map_row = static_cast<std::size_t>(inner.columns()) + 1;
    Painted made{Exact<std::uint8_t>(row * inner.rows() - job.bytes), Exact<std::uint8_t>(map_row * inner.rows() - 1)};
    const int margin = job.refined ? 1 : 0;
    const pcsr::Region region{std::max(inner.top - margin, 0), std::min(inner.bottom + margin, +Job::H),
                              std::max(inner.left - margin, 0), std::min(inner.right + margin, +Job::W)};
    const std::int64_t bytes = static_cast<std::int64_t>(job.bytes);
    const pcsr::Patch patch{job.lr.data.get(),
                            (Job::w * Job::channels + 3) * bytes,
                            Job::channels * bytes,
                            bytes,
                            0,
                            0,
                            Job::w,
                            Job::channels,
                            job.sample,
                            job.refined,
                            job.low_rows.data.get(),
                            job.high_rows.data.get(),
                            job.row_weights.data.get(),
                            job.low_columns.data.get(),
                            job.high_columns.data.get(),
                            job.column_weights.data.get(),
                            region,
                            inner,
                            made.out.data.get(),
                            static_cast<std::int64_t>(row)};
    const pcsr::Rule rule{job.weighted ? nullptr : job.thresholds.data.get(), job.weighted ? job.weights.data.get() : nullptr};
    const pcsr::Painting painting{rule,
                                  job.difficulties,
                                  Job::W,
                                  made.map.data.get(),
                                  static_cast<std::int64_t>(map_row),
                                  made.counts.data.get(),
                                  made.seconds.data.get()};
    made.first = engine.paint(job.scene->window, job.scene->place, patch,
                              {blocks.data(), static_cast<std::int32_t>(blocks.size()), threads}, painting);
    return made;
}

int survey(const pcsr::Engine& engine, const Job& job, const Regions& blocks, int threads, Exact<float>& out) {
    double seconds = -1;
    const int first = engine.survey(job.scene->window, job.scene->place,
                                    {blocks.data(), static_cast<std::int32_t>(blocks.size()), threads}, out.data.get(),
                                    Job::W, &seconds);
    expect(seconds >= 0, "seconds are told");
    return first;
}

const pcsr::Region kWhole{0, Job::H, 0, Job::W};

void test_blocks_and_threads_do_not_change_a_bit(Open open, pcsr::Sample sample, std::size_t bytes) {
    Job job(sample, bytes);
    const std::unique_ptr<pcsr::Engine> engine = open(job.random.network);
    Exact<float> known(Job::H * Job::W);
    expect(survey(*engine, job, {kWhole}, 1, known) == 1, "all is finite");
    for (const int threads : {1, 2, 3, 4, 5}) {
        Exact<float> found(known.size);
        const Regions blocks = cut(kWhole, 5, 13);
        expect(survey(*engine, job, blocks, threads, found) == static_cast<int>(blocks.size()), "all is finite");
        expect(std::memcmp(found.data.get(), known.data.get(), known.size * sizeof(float)) == 0,
               "difficulties are those of one block");
    }
    const auto compare = [&](const std::string& name) {
        for (const pcsr::Region& inner : {kWhole, pcsr::Region{3, 17, 5, 60}}) {
            const Painted expected = paint(*engine, job, inner, {inner}, 1);
            expect(expected.first == 1, "all is finite");
            std::int64_t pixels = 0;
            for (int j = 0; j < 3; ++j) pixels += expected.counts.data[j];
            expect(pixels == inner.rows() * inner.columns(), "every pixel is counted once");
            for (const int threads : {1, 2, 3, 4, 5}) {
                const Regions blocks = cut(inner, threads == 4 ? 1 : 5, threads == 3 ? 100 : 13);
                const Painted found = paint(*engine, job, inner, blocks, threads);
                expect(found.first == static_cast<int>(blocks.size()), "all is finite");
                expect(found == expected, name + ": " + std::to_string(threads) + " threads give the bits of one block");
            }
        }
    };
    for (const bool refined : {false, true}) {
        job.refined = refined;
        job.weighted = true;
        compare("weights");
        job.weighted = false;
        compare("thresholds");
        job.difficulties = known.data.get();
        compare("known difficulties");
        job.difficulties = nullptr;
    }
}

void test_the_first_block_that_is_not_finite_is_told(Open open) {
    Job job(pcsr::Sample::byte, 1);
    // Five blocks; the margins of their neighbours hold nothing of what is spoilt.
    const Regions blocks = cut(kWhole, 4, Job::W);
    job.spoil(10, 30);
    const std::unique_ptr<pcsr::Engine> engine = open(job.random.network);
    Exact<float> out(Job::H * Job::W);
    for (int threads = 1; threads <= 5; ++threads) {
        expect(paint(*engine, job, kWhole, blocks, threads).first == 2, "the third block is not finite");
        expect(survey(*engine, job, blocks, threads, out) == 2, "the third block is not finite, says the classifier");
    }
    job.spoil(17, 2);
    for (int threads = 1; threads <= 5; ++threads) {
        expect(paint(*engine, job, kWhole, blocks, threads).first == 2, "the first of two blocks is told");
        expect(survey(*engine, job, blocks, threads, out) == 2, "the first of two blocks is told, says the classifier");
    }
}

void test_no_blocks_are_no_work(Open open) {
    Job job(pcsr::Sample::byte, 1);
    const std::unique_ptr<pcsr::Engine> engine = open(job.random.network);
    Exact<float> out(Job::H * Job::W);
    expect(survey(*engine, job, {}, 3, out) == 0, "nothing is surveyed");
    const Painted found = paint(*engine, job, kWhole, {}, 3);
    expect(found.first == 0 && found.counts.data[0] == 0 && found.seconds.data[0] == 0, "nothing is painted");
}

void test_calls_at_the_same_time_do_not_disturb_each_other(Open open) {
    const Job job(pcsr::Sample::word, 2);
    const std::unique_ptr<pcsr::Engine> engine = open(job.random.network);
    const Painted alone = paint(*engine, job, kWhole, {kWhole}, 1);
    std::vector<std::thread> callers;
    std::vector<int> same(3);
    for (int& each : same) {
        callers.emplace_back([&] { each = paint(*engine, job, kWhole, cut(kWhole, 2, 31), 2) == alone; });
    }
    for (std::thread& caller : callers) caller.join();
    for (const int each : same) expect(each, "calls at the same time disturb each other");
}

void test_memory_that_ends_is_an_exception(Open open) {
    const Job job(pcsr::Sample::byte, 1);
    const std::unique_ptr<pcsr::Engine> engine = open(job.random.network);
    const Painted expected = paint(*open(job.random.network), job, kWhole, {kWhole}, 1);
    const Regions blocks = cut(kWhole, 9, 31);
    const long noticed = memory::count_failures([&] { paint(*engine, job, kWhole, blocks, 3); });
    // Output, sums, and the buffers of a block at the least.
    expect(noticed > 10, "memory that ends is noticed");
    expect(paint(*engine, job, kWhole, blocks, 3) == expected, "a failure shows in the next call");
}

}  // namespace

int main(int count, char** arguments) {
    const bool threads_alone = count == 2 && std::strcmp(arguments[1], "threads") == 0;
    std::vector<std::pair<std::string, Open>> opens = others();
    opens.emplace_back("scalar", scalar::open);
    for (const auto& [name, open] : opens) {
        const int before = failures;
        test_blocks_and_threads_do_not_change_a_bit(open, pcsr::Sample::byte, 1);
        test_blocks_and_threads_do_not_change_a_bit(open, pcsr::Sample::word, 2);
        test_blocks_and_threads_do_not_change_a_bit(open, pcsr::Sample::real, 4);
        test_the_first_block_that_is_not_finite_is_told(open);
        test_calls_at_the_same_time_do_not_disturb_each_other(open);
        if (!threads_alone) {
            test_no_blocks_are_no_work(open);
            test_memory_that_ends_is_an_exception(open);
        }
        if (failures > before) std::printf("in %s\n", name.c_str());
    }
    if (failures == 0) std::printf("all right\n");
    return failures != 0;
}
