// The two kinds of numbers that products are taken of. Both come in units of four bytes: two bfloat16 or one float32. So
// one layout and one kernel serve both: a unit of weights per lane, times a unit of activations for all lanes.
#pragma once
#include "vectors.h"

namespace weir::WEIR_ISA {

struct Bf16 {
  using Raw = uint16_t;
  static constexpr int PER_UNIT = 2;

#if defined(__AVX512BF16__)
  using Weights = __m512bh;
  using Activation = __m512bh;
  static WEIR_INLINE Weights weights(const uint32_t *units) { return (__m512bh)_mm512_loadu_si512(units); }
  static WEIR_INLINE Activation activation(const uint32_t *unit) { return (__m512bh)_mm512_set1_epi32(*(const int *)unit); }
  static WEIR_INLINE Floats add_product(Floats sum, Weights w, Activation a) {
    return (Floats)_mm512_dpbf16_ps((__m512)sum, w, a);
  }
#else
  struct Pair {
    Floats even, odd;
  };
  using Weights = Pair;
  using Activation = Pair;
  static WEIR_INLINE Pair split(Words u) { return {(Floats)(u << 16), (Floats)(u & words(0xffff0000u))}; }
  static WEIR_INLINE Weights weights(const uint32_t *units) { return split(load<Words>(units)); }
  static WEIR_INLINE Activation activation(const uint32_t *unit) { return split(words(*unit)); }
  static WEIR_INLINE Floats add_product(Floats sum, Weights w, Activation a) {
    return sum + w.even * a.even + w.odd * a.odd;
  }
#endif
  static WEIR_INLINE void put(Raw *to, Floats v) { store(to, to_bf16(v)); }
  static WEIR_INLINE Floats get(const Raw *from) { return from_bf16(load<Halves>(from)); }
  static WEIR_INLINE float get_one(const Raw *from) {
    uint32_t bits = (uint32_t)*from << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
  }
};

struct F32 {
  using Raw = float;
  static constexpr int PER_UNIT = 1;
  using Weights = Floats;
  using Activation = Floats;
  static WEIR_INLINE Weights weights(const uint32_t *units) { return (Floats)load<Words>(units); }
  static WEIR_INLINE Activation activation(const uint32_t *unit) { return (Floats)words(*unit); }
  static WEIR_INLINE Floats add_product(Floats sum, Weights w, Activation a) { return sum + w * a; }
  static WEIR_INLINE void put(Raw *to, Floats v) { store(to, v); }
  static WEIR_INLINE Floats get(const Raw *from) { return load<Floats>(from); }
  static WEIR_INLINE float get_one(const Raw *from) { return *from; }
};

}  // namespace weir::WEIR_ISA
