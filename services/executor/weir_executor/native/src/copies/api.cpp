// What Python calls, by plain C names.
#include "../isa.h"
#include "copies.h"

namespace weir {

#define WEIR_DECLARE(isa) extern const Copies isa##_copies;
#define WEIR_ADDRESS(isa) &isa##_copies,
WEIR_EACH_ISA(WEIR_DECLARE)

static const Copies *find_copies(const char *isa) { return find_part<Copies>({WEIR_EACH_ISA(WEIR_ADDRESS)}, isa); }

}  // namespace weir

WEIR_API const char *weir_isa(const char *isa) {
  const weir::Copies *copies = weir::find_copies(isa);
  return copies ? copies->name : nullptr;
}

// The instruction set's copies, for the calls below. Null: they do not run here.
WEIR_API const weir::Copies *weir_copies(const char *isa) { return weir::find_copies(isa); }

// `count` blocks of `bytes` each, from where they lie to every `stride` bytes. Returns how many have been copied before the
// first whose copy has another checksum than it should.
WEIR_API int weir_copy_out(const weir::Copies *copies, uint8_t *to, size_t stride, const uint8_t *from,
                           const uint64_t *offsets, const uint64_t *checksums, int count, size_t bytes) {
  int block = 0;
  while (block < count && copies->copy_and_hash(to + block * stride, from + offsets[block], bytes) == checksums[block]) block++;
  copies->settle();
  return block;
}

WEIR_API uint64_t weir_copy_in(const weir::Copies *copies, uint8_t *to, const uint8_t *from, size_t bytes) {
  const uint64_t checksum = copies->copy_and_hash(to, from, bytes);
  copies->settle();
  return checksum;
}
