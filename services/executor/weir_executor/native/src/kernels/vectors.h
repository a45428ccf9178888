// Vectors of floats as wide as the instruction set has them. Compiled once per instruction set, each in its own namespace.
// What GCC's and Clang's vector types express is written once; only what they cannot is spelled per instruction set.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace weir::WEIR_ISA {

#if defined(__AVX512F__)
constexpr int LANES = 16, REGISTERS = 32;
#elif defined(__AVX2__)
constexpr int LANES = 8, REGISTERS = 16;
#else
constexpr int LANES = 4, REGISTERS = 16;  // SSE2 and NEON
#endif

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));

#define WEIR_INLINE inline __attribute__((always_inline))

template <class V, class T>
WEIR_INLINE V load(const T *from) {
  V v;
  memcpy(&v, from, sizeof v);
  return v;
}
template <class V, class T>
WEIR_INLINE void store(T *to, V v) {
  memcpy(to, &v, sizeof v);
}

WEIR_INLINE Floats floats(const float *from) { return load<Floats>(from); }
WEIR_INLINE Words words(uint32_t bits) { return Words{} + bits; }
WEIR_INLINE Floats all(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return (Floats)words(bits);
}

// The first where the condition holds. A comparison with a NaN does not hold.
WEIR_INLINE Floats choose(Ints condition, Floats yes, Floats no) { return condition ? yes : no; }

WEIR_INLINE Floats largest(Floats a, Floats b) {
#if defined(__AVX512F__)
  return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Floats)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return choose(a > b, a, b);
#endif
}

// Reductions add in one fixed order, so that a row's numbers never depend on what else is computed.
WEIR_INLINE float sum(Floats v) {
  float x[LANES];
  store(x, v);
  for (int width = LANES / 2; width; width /= 2)
    for (int i = 0; i < width; i++) x[i] += x[i + width];
  return x[0];
}
WEIR_INLINE float highest(Floats v) {
  float x[LANES];
  store(x, v);
  for (int width = LANES / 2; width; width /= 2)
    for (int i = 0; i < width; i++) x[i] = x[i] > x[i + width] ? x[i] : x[i + width];
  return x[0];
}

// 2^f for f from -1/2 to 1/2, to about 2 units in the last place. Polynomial: Cephes' exp2f.
WEIR_INLINE Floats exp2_of_fraction(Floats f) {
  Floats p = all(1.535336188319500e-4f);
  p = p * f + all(1.339887440266574e-3f);
  p = p * f + all(9.618437357674640e-3f);
  p = p * f + all(5.550332471162809e-2f);
  p = p * f + all(2.402264791363012e-1f);
  p = p * f + all(6.931472028550421e-1f);
  return p * f + all(1.f);
}

// 2^x. What is too small for a float is nothing, or nearly; a NaN stays one.
WEIR_INLINE Floats exp2(Floats x) {
#if defined(__AVX512F__)
  const __m512 whole = _mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return (Floats)_mm512_scalef_ps((__m512)exp2_of_fraction(x - (Floats)whole), whole);
#else
  Floats bounded = choose(x > all(126.f), all(126.f), choose(x < all(-126.f), all(-126.f), x));
  const Floats rounder = all(12582912.f);  // 1.5 * 2^23: adding it leaves the nearest whole number in the low bits
  const Floats shifted = bounded + rounder;
  const Words power = ((Words)shifted - words(0x4b400000u) + words(127u)) << 23;
  return choose(x == x, exp2_of_fraction(bounded - (shifted - rounder)) * (Floats)power, x);
#endif
}

WEIR_INLINE Floats silu(Floats x) { return x / (all(1.f) + exp2(x * all(-1.44269504f))); }

// Rounded to the nearest, to even among equals; a NaN stays one.
WEIR_INLINE Halves to_bf16(Floats v) {
#if defined(__AVX512BF16__)
  return (Halves)_mm512_cvtneps_pbh((__m512)v);
#else
  Words u = (Words)v;
  Words rounded = u + words(0x7fffu) + ((u >> 16) & words(1u));
  Words kept = (v == v) ? rounded : (u | words(0x400000u));
  return __builtin_convertvector(kept >> 16, Halves);
#endif
}
WEIR_INLINE Floats from_bf16(Halves v) { return (Floats)(__builtin_convertvector(v, Words) << 16); }

}  // namespace weir::WEIR_ISA
