// XXH3-64 of long inputs, without seed, stripe by stripe: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md.
// Compiled once per instruction set, each in its own namespace.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace weir::WEIR_ISA {

#define WEIR_INLINE inline __attribute__((always_inline))

#if defined(__AVX512F__)
constexpr int WIDTH = 64;
#elif defined(__AVX2__)
constexpr int WIDTH = 32;
#else
constexpr int WIDTH = 16;  // SSE2 and NEON
#endif

// A stripe is eight lanes of 64 bits.
constexpr int STRIPE = 64, PARTS = STRIPE / WIDTH;
// Shorter inputs have algorithms of their own in XXH3; they are not here.
constexpr size_t LONG_INPUT = 241;

typedef uint64_t Lanes __attribute__((vector_size(WIDTH)));
struct Stripe {
  Lanes parts[PARTS];
};

constexpr uint64_t PRIME32_1 = 0x9E3779B1u, PRIME32_2 = 0x85EBCA77u, PRIME32_3 = 0xC2B2AE3Du;
constexpr uint64_t PRIME64_1 = 0x9E3779B185EBCA87u, PRIME64_2 = 0xC2B2AE3D27D4EB4Fu, PRIME64_3 = 0x165667B19E3779F9u;
constexpr uint64_t PRIME64_4 = 0x85EBCA77C2B2AE63u, PRIME64_5 = 0x27D4EB2F165667C5u, PRIME_MX1 = 0x165667919E3779F9u;

alignas(64) constexpr uint8_t SECRET[192] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};
// Each stripe takes the secret eight bytes further on; when it is used up, the sums are scrambled with its end.
constexpr int STRIPES_TO_SCRAMBLE = (sizeof SECRET - STRIPE) / 8;
constexpr int SCRAMBLE = sizeof SECRET - STRIPE, LAST_STRIPE = SCRAMBLE - 7, MERGE = 11;

template <class T>
WEIR_INLINE T load(const uint8_t *from) {
  T value;
  memcpy(&value, from, sizeof value);
  return value;
}

// Of each lane its lower 32 bits times those of the other's.
WEIR_INLINE Lanes product(Lanes a, Lanes b) {
#if defined(__AVX512F__)
  return (Lanes)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Lanes)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (Lanes)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xffffffff) * (b & 0xffffffff);
#endif
}

// Neighbours take each other's place.
WEIR_INLINE Lanes swapped(Lanes lanes) {
#if defined(__AVX512F__)
  return (Lanes)_mm512_shuffle_epi32((__m512i)lanes, _MM_PERM_BADC);
#elif defined(__AVX2__)
  return (Lanes)_mm256_shuffle_epi32((__m256i)lanes, 0x4e);
#else
  return Lanes{lanes[1], lanes[0]};
#endif
}

WEIR_INLINE uint64_t folded_product(uint64_t a, uint64_t b) {
  const unsigned __int128 product = (unsigned __int128)a * b;
  return (uint64_t)product ^ (uint64_t)(product >> 64);
}

WEIR_INLINE uint64_t avalanche(uint64_t x) {
  x ^= x >> 37;
  x *= PRIME_MX1;
  return x ^ x >> 32;
}

struct Digest {
  Stripe sums = load<Stripe>((const uint8_t *)START);

  WEIR_INLINE void add(const Stripe &stripe, const uint8_t *secret) {
    for (int i = 0; i < PARTS; i++) {
      const Lanes mixed = stripe.parts[i] ^ load<Lanes>(secret + i * WIDTH);
      sums.parts[i] += swapped(stripe.parts[i]) + product(mixed, mixed >> 32);
    }
  }

  WEIR_INLINE void scramble() {
    for (int i = 0; i < PARTS; i++) {
      Lanes lanes = sums.parts[i];
      lanes ^= lanes >> 47 ^ load<Lanes>(SECRET + SCRAMBLE + i * WIDTH);
      const Lanes prime = Lanes{} + PRIME32_1;
      sums.parts[i] = product(lanes, prime) + (product(lanes >> 32, prime) << 32);
    }
  }

  WEIR_INLINE uint64_t finish(size_t bytes) const {
    uint64_t lanes[8], sum = bytes * PRIME64_1;
    memcpy(lanes, &sums, sizeof lanes);
    for (int i = 0; i < 8; i += 2) {
      const uint8_t *secret = SECRET + MERGE + i * 8;
      sum += folded_product(lanes[i] ^ load<uint64_t>(secret), lanes[i + 1] ^ load<uint64_t>(secret + 8));
    }
    return avalanche(sum);
  }

 private:
  static constexpr uint64_t START[8] = {PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3,
                                        PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1};
};

}  // namespace weir::WEIR_ISA
