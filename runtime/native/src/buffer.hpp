// Memory for the floats of a call, aligned to cache lines.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace PCSR_ISA {

class Buffer {
   public:
    // Zeroed, so that lanes that nobody uses hold no NaN. Throws std::bad_alloc.
    explicit Buffer(std::size_t floats)
        : data_(static_cast<float*>(::operator new[](floats * sizeof(float), kAlignment))) {
        std::uninitialized_fill_n(data_.get(), floats, 0.0f);
    }

    float* data() { return data_.get(); }

   private:
    static constexpr std::align_val_t kAlignment{64};

    struct Free {
        void operator()(float* data) const { ::operator delete[](data, kAlignment); }
    };

    std::unique_ptr<float[], Free> data_;
};

}  // namespace PCSR_ISA
