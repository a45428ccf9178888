// Weights as whole numbers of eight or four bits. Activations become whole numbers of sixteen, more exact than bfloat16, so
// what rounding there is comes from the weights alone; sums of products are exact, whatever computes them.
#pragma once
#include "decoder.h"
#include "elements.h"

namespace weir::WEIR_ISA {

typedef int16_t Shorts __attribute__((vector_size(LANES * 4)));
typedef int16_t HalfShorts __attribute__((vector_size(LANES * 2)));
typedef int8_t Bytes __attribute__((vector_size(LANES * 2)));
typedef uint8_t QuarterBytes __attribute__((vector_size(LANES)));

// Pairs of weights of LANES outputs, as 16-bit numbers.
struct Whole8 {
  static constexpr int PAIR_BYTES = 2;
  static WEIR_INLINE Shorts pairs(const char *from) {
#if defined(__AVX512BW__)
    return (Shorts)_mm512_cvtepi8_epi16(load<__m256i>(from));
#elif defined(__AVX2__)
    return (Shorts)_mm256_cvtepi8_epi16(load<__m128i>(from));
#else
    return __builtin_convertvector(load<Bytes>(from), Shorts);
#endif
  }
};
struct Whole4 {
  static constexpr int PAIR_BYTES = 1;
  static WEIR_INLINE Shorts pairs(const char *from) {
#if defined(__AVX512F__)
    const Words b = (Words)_mm512_cvtepu8_epi32(load<__m128i>(from));
#else
    const Words b = __builtin_convertvector(load<QuarterBytes>(from), Words);
#endif
    return (Shorts)((b | b << 12) & words(0x000f000fu)) - (int16_t)8;
  }
};

// sum + w₀·a₀ + w₁·a₁ in every lane.
WEIR_INLINE Ints add_pairs(Ints sum, Shorts w, Shorts a) {
#if defined(__AVX512VNNI__)
  return (Ints)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)w, (__m512i)a);
#elif defined(__AVX512BW__)
  return sum + (Ints)_mm512_madd_epi16((__m512i)w, (__m512i)a);
#elif defined(__AVX2__)
  return sum + (Ints)_mm256_madd_epi16((__m256i)w, (__m256i)a);
#else
  const Ints wide_w = (Ints)w, wide_a = (Ints)a;
  return sum + (wide_w << 16 >> 16) * (wide_a << 16 >> 16) + (wide_w >> 16) * (wide_a >> 16);
#endif
}

// A row of activations → whole numbers, filled up with zeros; returns their scale. A number that is none makes the scale
// none, and with it all that the row gives.
template <class E>
inline float to_whole(const typename E::Raw *row, int inputs, int padded, int16_t *to) {
  Floats most{}, poison{};
  for (int i = 0; i < inputs; i += LANES) {
    const Floats x = E::get(row + i);
    most = largest(most, largest(x, -x));
    poison += x * all(0.f);
  }
  const float top = highest(most), factor = top > 0.f ? 32767.f / top : 0.f;
  const Floats rounder = all(12582912.f);  // see `exp2`
  for (int i = 0; i < inputs; i += LANES) {
    const Ints whole = (Ints)(E::get(row + i) * all(factor) + rounder) - 0x4b400000;
    store(to + i, __builtin_convertvector(whole, HalfShorts));
  }
  for (int i = round_up(inputs, LANES); i < padded; i++) to[i] = 0;
  return top / 32767.f + sum(poison);
}

// As `tile` in multiply.h, of whole numbers; `x` are pairs, `scales` the panel's.
template <class Q, int ROWS>
WEIR_INLINE void whole_tile(const uint32_t *x, size_t stride, const float *row_scales, const char *panel,
                            const float *scales, int steps, float *out) {
  for (int column = 0; column < PANEL; column += 2 * LANES) {
    Floats sums[ROWS][2] = {};
    const char *w = panel + column * Q::PAIR_BYTES;
    const uint32_t *x0 = x, *x1 = x + stride, *x2 = x + 2 * stride, *x3 = x + 3 * stride;  // as in `tile`
    for (int group = 0; group < steps / (SCALED / 2); group++) {
      Ints whole[ROWS][2] = {};
      for (int k = 0; k < SCALED / 2; k++, w += PANEL * Q::PAIR_BYTES) {
        const Shorts w0 = Q::pairs(w), w1 = Q::pairs(w + LANES * Q::PAIR_BYTES);
        __builtin_prefetch(w + 4096, 0, 2);
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++) {
          const uint32_t *base = r % 4 == 0 ? x0 : r % 4 == 1 ? x1 : r % 4 == 2 ? x2 : x3;
          const Shorts a = (Shorts)words(base[r / 4 * 4 * stride]);
          whole[r][0] = add_pairs(whole[r][0], w0, a);
          whole[r][1] = add_pairs(whole[r][1], w1, a);
        }
        x0++, x1++, x2++, x3++;
      }
      const Floats s0 = floats(scales + group * PANEL + column), s1 = floats(scales + group * PANEL + column + LANES);
      for (int r = 0; r < ROWS; r++) {
        sums[r][0] += __builtin_convertvector(whole[r][0], Floats) * s0;
        sums[r][1] += __builtin_convertvector(whole[r][1], Floats) * s1;
      }
    }
    for (int r = 0; r < ROWS; r++) {
      store(out + r * PANEL + column, sums[r][0] * all(row_scales[r]));
      store(out + r * PANEL + column + LANES, sums[r][1] * all(row_scales[r]));
    }
  }
}

}  // namespace weir::WEIR_ISA
