// y = x Wᵀ + b for a step's rows. A tile of rows by one panel of outputs is summed in registers over all inputs, in their
// order, one sum per number: what a row comes to depends neither on the rows beside it nor on how many threads there are.
#pragma once
#include "decoder.h"
#include "elements.h"
#include "whole.h"

namespace weir::WEIR_ISA {

// Rows of a tile: with two vectors of outputs each, as many sums as the registers hold beside weights and activation.
constexpr int TILE_ROWS = REGISTERS == 32 ? 12 : 4;

// Rows of activations that stay in a core's second-level cache while all panels pass by.
constexpr int CACHED_BYTES = 384 << 10;

struct Range {
  int first, end;
};
WEIR_INLINE Range share(int total, const Member &member) {
  return {(int)((int64_t)total * member.index / member.count), (int)((int64_t)total * (member.index + 1) / member.count)};
}

// A panel is asked for while the one before it is multiplied: each tile, on each of its ways through the panel, asks for
// its part, so that weights arrive while sums are taken, not between. Where there is one part only, it is a little ahead.
struct Ahead {
  int part, parts;
};
constexpr int AHEAD_BYTES = 4096;
constexpr int WAYS = PANEL / (2 * LANES);

// [ROWS] rows at `x`, `stride` units apart, by one panel: `out` [ROWS][PANEL].
template <class E, int ROWS>
WEIR_INLINE void tile(const uint32_t *x, size_t stride, const uint32_t *panel, int steps, Ahead ahead, float *out) {
  for (int column = 0; column < PANEL; column += 2 * LANES) {
    Floats sums[ROWS][2] = {};
    // Four pointers reach twelve rows, for an address may add a stride times four or eight.
    const uint32_t *x0 = x, *x1 = x + stride, *x2 = x + 2 * stride, *x3 = x + 3 * stride;
    const uint32_t *w = panel + column;
    const int part = ahead.part + column / (2 * LANES), step = PANEL * sizeof(uint32_t);
    const char *wanted = (const char *)panel + (ahead.parts == 1 ? AHEAD_BYTES : (size_t)steps * step * (ahead.parts + part) / ahead.parts);
    for (int k = 0; k < steps; k++, w += PANEL) {
      const auto w0 = E::weights(w), w1 = E::weights(w + LANES);
      __builtin_prefetch(wanted, 0, 2);
      __builtin_prefetch(wanted + 64, 0, 2);
      wanted += step / ahead.parts;
#pragma GCC unroll 12
      for (int r = 0; r < ROWS; r++) {
        const uint32_t *base = r % 4 == 0 ? x0 : r % 4 == 1 ? x1 : r % 4 == 2 ? x2 : x3;
        const auto a = E::activation(base + r / 4 * 4 * stride);
        sums[r][0] = E::add_product(sums[r][0], w0, a);
        sums[r][1] = E::add_product(sums[r][1], w1, a);
      }
      x0++, x1++, x2++, x3++;
    }
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++) {
      store(out + r * PANEL + column, sums[r][0]);
      store(out + r * PANEL + column + LANES, sums[r][1]);
    }
  }
}

// How a range of rows is multiplied by a panel, for weights of the element and for whole numbers. Each knows its rows, and
// gives `count` of them, at most ROWS, from `row` on.
template <class E>
struct PlainTiles {
  static constexpr int ROWS = TILE_ROWS;
  const Matrix &w;
  const uint32_t *x;  // units
  size_t stride;

  template <int COUNT = ROWS>
  void multiply(int count, int row, int panel, Ahead ahead, float *out) const {
    if constexpr (COUNT > 1)
      if (count < COUNT) return multiply<COUNT - 1>(count, row, panel, ahead, out);
    tile<E, COUNT>(x + row * stride, stride, (const uint32_t *)w.panel(panel), w.steps, ahead, out);
  }
};

template <class Q>
struct WholeTiles {
  static constexpr int ROWS = REGISTERS == 32 ? 6 : 2;  // two kinds of sums
  const Matrix &w;
  const uint32_t *x;  // pairs
  size_t stride;
  const float *row_scales;

  template <int COUNT = ROWS>
  void multiply(int count, int row, int panel, Ahead ahead, float *out) const {
    if constexpr (COUNT > 1)
      if (count < COUNT) return multiply<COUNT - 1>(count, row, panel, ahead, out);
    const float *scales = w.scales.template as<float>() + (size_t)panel * w.steps / (SCALED / 2) * PANEL;
    whole_tile<Q, COUNT>(x + row * stride, stride, row_scales + row, w.panel(panel), scales, w.steps, out);
  }
};

// All rows of a range by all panels of a range. `take(row, panel, values)` gets [PANEL] outputs of one row, bias added.
template <class Tiles, class Take>
inline void multiply_range(const Tiles &tiles, Range rows, Range panels, Take &take) {
  constexpr int ROWS = Tiles::ROWS;
  alignas(64) float out[ROWS * PANEL];
  const Matrix &w = tiles.w;
  const int cached = CACHED_BYTES / (int)(tiles.stride * 4) / ROWS * ROWS, most = cached > ROWS ? cached : ROWS;
  for (int block = rows.first; block < rows.end; block += most) {
    const int end = block + most < rows.end ? block + most : rows.end, parts = (end - block + ROWS - 1) / ROWS;
    for (int p = panels.first; p < panels.end; p++) {
      int row = block;
      for (int t = 0; t < parts; t++) {
        const int count = (end - row) / (parts - t);  // as even as it goes
        tiles.multiply(count, row, p, Ahead{t * WAYS, parts * WAYS}, out);
        for (int r = 0; r < count; r++) {
          float *values = out + r * PANEL;
          if (!w.bias.empty())
            for (int i = 0; i < PANEL; i += LANES) store(values + i, floats(values + i) + floats(&w.bias[p * PANEL + i]));
          take(row + r, p, values);
        }
        row += count;
      }
    }
  }
}

// This member's share: few rows are multiplied by a part of the panels, many rows are shared out.
template <class Tiles, class Take>
inline void multiply(const Member &member, const Tiles &tiles, int rows, Take &take) {
  const bool many = rows >= 4 * TILE_ROWS * member.count;
  const Range mine = many ? share(rows, member) : Range{0, rows};
  const Range panels = many ? Range{0, tiles.w.panels} : share(tiles.w.panels, member);
  multiply_range(tiles, mine, panels, take);
}

}  // namespace weir::WEIR_ISA
