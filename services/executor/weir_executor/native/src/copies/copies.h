// What one instruction set's translation unit offers.
#pragma once
#include <cstddef>
#include <cstdint>

namespace weir {

struct Copies {
  const char *name;
  // Copies at least LONG_INPUT bytes; returns the XXH3-64 of what it has written, which is what it has read, once.
  uint64_t (*copy_and_hash)(uint8_t *to, const uint8_t *from, size_t bytes);
  void (*settle)();
};

}  // namespace weir
