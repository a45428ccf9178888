// Large memory in large pages: weights and blocks are streamed, and with 4 KiB pages the address translation alone costs
// a fifth of the bandwidth.
#pragma once
#include <cstddef>

namespace weir {

// Zeroed memory, aligned to a cache line at least; freed with its owner. Throws std::bad_alloc.
class Memory {
 public:
  Memory() = default;
  explicit Memory(size_t bytes);
  ~Memory();
  Memory(Memory &&other) noexcept;
  Memory &operator=(Memory &&other) noexcept;
  Memory(const Memory &) = delete;
  Memory &operator=(const Memory &) = delete;

  template <class T>
  T *as() const {
    return static_cast<T *>(start_);
  }
  size_t bytes() const { return bytes_; }

 private:
  void *base_ = nullptr, *start_ = nullptr;
  size_t mapped_ = 0, bytes_ = 0;
};

}  // namespace weir
