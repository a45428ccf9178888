// One instruction set's copies. The build compiles this file once per set, with WEIR_ISA naming it.
#include "copies.h"

#include "xxh3.h"

namespace weir {
namespace WEIR_ISA {

// Reads a stripe, once. Others write where it lies while we copy, so that a second reading may find other bytes; and a
// compiler that is short of registers may read again what it could keep, unless it is told that the memory is volatile.
WEIR_INLINE Stripe read_once(const uint8_t *from) {
  typedef Lanes Anywhere __attribute__((aligned(1), may_alias));
  Stripe stripe;
  for (int i = 0; i < PARTS; i++) stripe.parts[i] = *(const volatile Anywhere *)(from + i * WIDTH);
  return stripe;
}

// Past the caches, where the instruction set can and `to` is aligned: a store through them would first read the line.
template <bool STREAMS>
WEIR_INLINE void write(uint8_t *to, const Stripe &stripe) {
#if defined(__SSE2__)
  for (int i = 0; STREAMS && i < PARTS; i++) {
#if defined(__AVX512F__)
    _mm512_stream_si512((__m512i *)(to + i * WIDTH), (__m512i)stripe.parts[i]);
#elif defined(__AVX2__)
    _mm256_stream_si256((__m256i *)(to + i * WIDTH), (__m256i)stripe.parts[i]);
#else
    _mm_stream_si128((__m128i *)(to + i * WIDTH), (__m128i)stripe.parts[i]);
#endif
  }
  if (STREAMS) return;
#endif
  memcpy(to, &stripe, sizeof stripe);
}

// All but the last 1 to 64 bytes are whole stripes. The last stripe is what the input ends with, whole or not beginning
// where the one before it ended, and it is made of what has been read, not read again.
template <bool STREAMS>
uint64_t copy(uint8_t *to, const uint8_t *from, size_t bytes) {
  const size_t stripes = (bytes - 1) / STRIPE, rest = bytes - stripes * STRIPE;
  Digest digest;
  Stripe stripe;
  for (size_t i = 0; i < stripes; i++) {
    const int turn = i % STRIPES_TO_SCRAMBLE;
    stripe = read_once(from + i * STRIPE);
    write<STREAMS>(to + i * STRIPE, stripe);
    digest.add(stripe, SECRET + 8 * turn);
    if (turn == STRIPES_TO_SCRAMBLE - 1) digest.scramble();
  }
  uint8_t window[2 * STRIPE];
  memcpy(window, &stripe, STRIPE);
  for (size_t i = 0; i < rest; i++) window[STRIPE + i] = ((const volatile uint8_t *)from)[stripes * STRIPE + i];
  memcpy(to + stripes * STRIPE, window + STRIPE, rest);
  digest.add(load<Stripe>(window + rest), SECRET + LAST_STRIPE);
  return digest.finish(bytes);
}

static uint64_t copy_and_hash(uint8_t *to, const uint8_t *from, size_t bytes) {
  return (uintptr_t)to % STRIPE ? copy<false>(to, from, bytes) : copy<true>(to, from, bytes);
}

// Before others are told that the bytes are there they are.
static void settle() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace WEIR_ISA

#define WEIR_NAME_OF(isa) #isa
#define WEIR_NAME(isa) WEIR_NAME_OF(isa)
#define WEIR_COPIES_OF(isa) isa##_copies
#define WEIR_COPIES(isa) WEIR_COPIES_OF(isa)

extern const Copies WEIR_COPIES(WEIR_ISA);
const Copies WEIR_COPIES(WEIR_ISA) = {WEIR_NAME(WEIR_ISA), WEIR_ISA::copy_and_hash, WEIR_ISA::settle};
}  // namespace weir
