// Much memory: in large pages where the system has them, since rows far apart are read together.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace PCSR_ISA {

class Pages {
   public:
    // Zeroed, so that columns that nobody uses hold no NaN. Throws std::bad_alloc.
    explicit Pages(std::size_t floats)
        : data_(static_cast<float*>(::operator new[](held(floats) * sizeof(float), kAlignment))) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
        // Advice: where it is not taken everything works all the same.
        const std::size_t whole = held(floats) * sizeof(float) / kPage * kPage;
        if (whole > 0) static_cast<void>(madvise(data_.get(), whole, MADV_HUGEPAGE));
#endif
        std::uninitialized_fill_n(data_.get(), floats, 0.0f);
    }

    float* data() { return data_.get(); }

    // What so many floats take: whole pages, unless that would more than double them.
    static std::size_t held(std::size_t floats) {
        constexpr std::size_t kFloats = kPage / sizeof(float);
        return floats < kFloats / 2 ? floats : (floats + kFloats - 1) / kFloats * kFloats;
    }

   private:
    static constexpr std::size_t kPage = std::size_t{1} << 21;
    static constexpr std::align_val_t kAlignment{kPage};

    struct Free {
        void operator()(float* data) const { ::operator delete[](data, kAlignment); }
    };

    std::unique_ptr<float[], Free> data_;
};

}  // namespace PCSR_ISA
