// Memory of a call that is kept for the next: to get it anew, page by page, would take a tenth of the time.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "pages.hpp"

namespace PCSR_ISA {

enum class Memory { kReal, kCounted };

// Pieces by number; each grows to the largest size that was asked for. Where memory is counted there is none.
class Pieces {
   public:
    explicit Pieces(Memory memory) : memory_(memory) {}

    float* get(std::size_t index, std::size_t floats) {
        while (pieces_.size() <= index) pieces_.push_back(Piece{});
        Piece& piece = pieces_[index];
        if (piece.floats < floats) {
            piece = Piece{};  // first: the old and the new one together might be too much
            if (memory_ == Memory::kReal) piece.buffer = std::make_unique<Pages>(floats);
            piece.floats = floats;
        }
        return piece.buffer ? piece.buffer->data() : nullptr;
    }

    std::size_t floats() const {
        std::size_t sum = 0;
        for (const Piece& piece : pieces_) sum += Pages::held(piece.floats);
        return sum;
    }

   private:
    struct Piece {
        std::unique_ptr<Pages> buffer;
        std::size_t floats = 0;
    };
    Memory memory_;
    std::vector<Piece> pieces_;
};

struct Workspace {
    explicit Workspace(Memory memory) : memory(memory), planes(memory), threads(memory) {}

    Memory memory;
    Pieces planes, threads;
};

// As many as there were calls at the same time.
class Workspaces {
   public:
    // A workspace for a call's duration.
    class Lease {
       public:
        explicit Lease(Workspaces& of) : of_(of) {
            const std::lock_guard<std::mutex> lock(of_.mutex_);
            of_.free_.reserve(of_.made_ + 1);  // so that giving back cannot fail
            if (of_.free_.empty()) {
                workspace_ = std::make_unique<Workspace>(Memory::kReal);
                ++of_.made_;
            } else {
                workspace_ = std::move(of_.free_.back());
                of_.free_.pop_back();
            }
        }
        ~Lease() {
            const std::lock_guard<std::mutex> lock(of_.mutex_);
            of_.free_.push_back(std::move(workspace_));
        }
        Lease(const Lease&) = delete;
        Lease& operator=(const Lease&) = delete;

        Workspace& operator*() const { return *workspace_; }

       private:
        Workspaces& of_;
        std::unique_ptr<Workspace> workspace_;
    };

   private:
    std::mutex mutex_;
    std::vector<std::unique_ptr<Workspace>> free_;
    std::size_t made_ = 0;
};

}  // namespace PCSR_ISA
