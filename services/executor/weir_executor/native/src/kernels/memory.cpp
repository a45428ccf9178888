#include "memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>
#include <utility>

namespace weir {

constexpr size_t PAGE = 2u << 20;  // what x86-64 and most of ARM call huge

Memory::Memory(size_t bytes) : bytes_(bytes) {
  if (!bytes) return;
  const size_t whole = (bytes + PAGE - 1) / PAGE * PAGE;
#if defined(MAP_HUGETLB)
  // Reserved huge pages, where an operator has set some aside.
  if (bytes >= PAGE) {
    base_ = mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
    if (base_ != MAP_FAILED) {
      start_ = base_, mapped_ = whole;
      return;
    }
  }
#endif
  mapped_ = bytes < PAGE ? bytes : whole + PAGE;  // room to align
  base_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base_ == MAP_FAILED) throw std::bad_alloc();
  start_ = base_;
  if (bytes >= PAGE) {
    start_ = reinterpret_cast<void *>((reinterpret_cast<uintptr_t>(base_) + PAGE - 1) / PAGE * PAGE);
#if defined(MADV_HUGEPAGE)
    madvise(start_, whole, MADV_HUGEPAGE);  // advice only: without it everything is right, and slower
#endif
  }
}

Memory::~Memory() {
  if (mapped_) munmap(base_, mapped_);
}

Memory::Memory(Memory &&other) noexcept { *this = std::move(other); }

Memory &Memory::operator=(Memory &&other) noexcept {
  std::swap(base_, other.base_);
  std::swap(start_, other.start_);
  std::swap(mapped_, other.mapped_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

}  // namespace weir
