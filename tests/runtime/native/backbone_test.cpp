// Backbones of one instruction set against their definitions, on pictures of awkward sizes.
//
// Built by `make sanitize`: with the address and undefined-behaviour sanitizers for every instruction set, which see what
// is read outside of the picture or written outside of the tables, both of exactly their size and aligned to nothing; and
// with the thread sanitizer, where the argument `threads` leaves out what has one thread.
#include "backbone.hpp"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "expect.hpp"
#include "failing_memory.hpp"
#include "reference.hpp"

namespace {

using namespace PCSR_ISA;

struct Free {
    void operator()(Backbone* backbone) const { free_backbone(backbone); }
};
using Owned = std::unique_ptr<Backbone, Free>;

std::vector<float> random_picture(int h, int w) {
    std::mt19937 random(static_cast<unsigned>(h * 1009 + w));
    std::uniform_real_distribution<float> uniform(0.0f, 1.0f);
    // The first value is not of the picture: what follows it is aligned to no vector.
    std::vector<float> lr(1 + static_cast<std::size_t>(3) * h * w);
    for (float& value : lr) value = uniform(random);
    return lr;
}

std::vector<float> run(const Backbone& backbone, const std::vector<float>& lr, int h, int w, int row, int threads) {
    std::vector<float> tables(1 + static_cast<std::size_t>(h) * w * row, NAN);
    run_backbone(backbone, lr.data() + 1, h, w, tables.data() + 1, threads);
    return std::vector<float>(tables.begin() + 1, tables.end());
}

std::string name_of(const reference::Network& network, Form form) {
    std::string name = network.description.backbone + " " + std::to_string(network.description.width);
    for (const auto& [option, value] : network.description.options) name += " " + option + " " + std::to_string(value);
    return name + (form == Form::kDirect ? " direct" : " Winograd");
}

// Largest difference as a part of the largest value.
constexpr double kTolerance = 2e-5;

void test_tables_are_those_of_the_definition(const reference::Network& network, Form form, int h, int w) {
    const Owned backbone(make_backbone(network.description, form));
    const std::vector<float> lr = random_picture(h, w);
    const std::vector<double> expected = reference::tables(network, {lr.begin() + 1, lr.end()}, h, w);
    const std::vector<float> got = run(*backbone, lr, h, w, network.description.row, 2);
    double largest = 0, difference = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
        largest = std::max(largest, std::fabs(expected[i]));
        const double error = std::fabs(expected[i] - got[i]);
        difference = error <= difference ? difference : error;  // so that NaN counts
    }
    expect(difference <= kTolerance * largest, name_of(network, form) + " on " + std::to_string(h) + " x " + std::to_string(w) +
                                                   ": differs by " + std::to_string(difference / largest) + " of the range");
}

void test_padding_of_tables_is_zero(const reference::Network& network) {
    const Owned backbone(make_backbone(network.description));
    const int h = 5, w = 9, row = network.description.row;
    const std::vector<float> got = run(*backbone, random_picture(h, w), h, w, row, 1);
    for (int pixel = 0; pixel < h * w; ++pixel) {
        for (const pcsr::Head& head : network.description.heads) {
            for (int c = head.channels; c < pcsr::padded(head.channels); ++c) {
                expect(got[static_cast<std::size_t>(pixel) * row + head.offset + c] == 0, "padding of tables is not zero");
            }
        }
    }
}

void test_threads_do_not_change_a_bit(const reference::Network& network, Form form, int h, int w) {
    const Owned backbone(make_backbone(network.description, form));
    const std::vector<float> lr = random_picture(h, w);
    const int row = network.description.row;
    const std::vector<float> one = run(*backbone, lr, h, w, row, 1);
    // Another picture in between: what it leaves in memory must not show.
    run(*backbone, random_picture(40, 300), 40, 300, row, 2);
    for (const int threads : {2, 5}) {
        const std::vector<float> many = run(*backbone, lr, h, w, row, threads);
        expect(std::memcmp(one.data(), many.data(), one.size() * sizeof(float)) == 0,
               name_of(network, form) + ": " + std::to_string(threads) + " threads give other bits than one");
    }
}

void test_calls_at_the_same_time_do_not_disturb_each_other(const reference::Network& network) {
    const Owned backbone(make_backbone(network.description));
    const int h = 30, w = 90, row = network.description.row;
    const std::vector<float> lr = random_picture(h, w);
    const std::vector<float> alone = run(*backbone, lr, h, w, row, 1);
    std::vector<std::vector<float>> together(3);
    std::vector<std::thread> callers;
    for (std::vector<float>& result : together) {
        callers.emplace_back([&] { result = run(*backbone, lr, h, w, row, 2); });
    }
    for (std::thread& caller : callers) caller.join();
    for (const std::vector<float>& result : together) expect(result == alone, "calls at the same time disturb each other");
}

void test_memory_that_ends_is_an_exception(const reference::Network& network) {
    // Two strips at the least.
    const int h = 2, w = 5 * kLanes, row = network.description.row;
    const std::vector<float> lr = random_picture(h, w);
    const std::vector<float> expected = run(*Owned(make_backbone(network.description)), lr, h, w, row, 3);
    std::vector<float> got(expected.size() + 1);
    const auto open_and_run = [&] {
        const Owned backbone(make_backbone(network.description));
        run_backbone(*backbone, lr.data() + 1, h, w, got.data() + 1, 3);
    };
    // Weights, workspace and rows at the least.
    expect(memory::count_failures(open_and_run) > 10, "memory that ends is not noticed");
    expect(std::memcmp(got.data() + 1, expected.data(), expected.size() * sizeof(float)) == 0, "where memory suffices tables are others");
    // The same backbone after a failure: what that left behind does not show.
    const Owned backbone(make_backbone(network.description));
    memory::count_failures([&] { run_backbone(*backbone, lr.data() + 1, h, w, got.data() + 1, 3); });
    expect(std::memcmp(got.data() + 1, expected.data(), expected.size() * sizeof(float)) == 0, "a failure shows in the next call");
}

void test_working_bytes_are_those_of_the_workspace(const reference::Network& network) {
    const Owned backbone(make_backbone(network.description));
    // More threads than there is work for take no memory.
    expect(working_bytes(*backbone, 1, 1, 1) == working_bytes(*backbone, 1, 1, 8), "threads without work take memory");
    expect(working_bytes(*backbone, 300, 300, 1) < working_bytes(*backbone, 300, 300, 2), "a thread takes no memory");
    expect(working_bytes(*backbone, 0, 4, 1) == 0, "no picture takes memory");
}

void test_networks_without_kernels_are_refused() {
    reference::Network unknown = reference::srresnet(8, 1, 1);
    unknown.description.backbone = "edsr";
    reference::Network lacking = reference::srresnet(8, 1, 1);
    lacking.description.weights.erase("backbone.unit0.conv2.bias");
    for (const reference::Network& network : {std::cref(unknown), std::cref(lacking)}) {
        bool refused = false;
        try {
            const Owned backbone(make_backbone(network.description));
        } catch (const std::invalid_argument&) {
            refused = true;
        }
        expect(refused, "a network that there are no kernels for is taken");
    }
}

bool processor_has_it() {
#if PCSR_LANES == 16
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#elif PCSR_LANES == 8
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return true;
#endif
}

}  // namespace

int main(int count, char** arguments) {
    if (!processor_has_it()) {
        std::printf("not for this processor\n");
        return 0;
    }
    const bool threads_alone = count == 2 && std::strcmp(arguments[1], "threads") == 0;
    const std::vector<reference::Network> networks = [] {
        std::vector<reference::Network> made;
        made.push_back(reference::carn(12, 1, 1));
        made.push_back(reference::carn(12, 2, 2));
        made.push_back(reference::carn(52, 4, 3));
        made.push_back(reference::carn(64, 4, 4));
        made.push_back(reference::fsrcnn(20, 5, 1, 5));
        made.push_back(reference::fsrcnn(56, 12, 4, 6));
        made.push_back(reference::fsrcnn(13, 3, 15, 7));  // more mapping layers than a pass takes
        made.push_back(reference::srresnet(12, 1, 8));
        made.push_back(reference::srresnet(17, 3, 9));
        made.push_back(reference::srresnet(64, 2, 10));
        return made;
    }();
    for (const reference::Network& network : networks) {
        const bool large = network.description.width > 20;
        // Larger networks race no more than small ones, and the thread sanitizer takes its time.
        if (threads_alone && large) continue;
        test_threads_do_not_change_a_bit(network, Form::kWinograd, 10, large ? 211 : 411);
        if (threads_alone) continue;
        const auto test = [&network](Form form, int h, int w) { test_tables_are_those_of_the_definition(network, form, h, w); };
        // The direct form serves as a reference alone.
        for (const int side : {1, 4, 9}) test(Form::kDirect, side, (side * 7) % 23 + 1);
        for (int side = 1; side <= (large ? 9 : 23); side += large ? 4 : 1) test(Form::kWinograd, side, (side * 7) % 23 + 1);
        test(Form::kWinograd, 1, large ? 131 : 600);
        test(Form::kWinograd, large ? 71 : 600, 1);
        // Around the columns of a vector of tiles, and more than a strip.
        for (const int w : {31, 62, 63, 191, 195, 400}) {
            if (w < 64 || !large) test(Form::kWinograd, 4, w);
        }
    }
    for (const Form form : {Form::kWinograd, Form::kDirect}) test_threads_do_not_change_a_bit(networks[0], form, 131, 67);
    test_calls_at_the_same_time_do_not_disturb_each_other(networks[2]);
    for (const std::size_t smallest : {0, 6, 7}) test_memory_that_ends_is_an_exception(networks[smallest]);
    for (const reference::Network& network : networks) test_working_bytes_are_those_of_the_workspace(network);
    test_padding_of_tables_is_zero(networks[0]);
    test_networks_without_kernels_are_refused();
    if (failures == 0) std::printf("all right\n");
    return failures != 0;
}
