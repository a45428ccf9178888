// y = x Wᵀ + b for a step's rows. A tile of rows by one panel of outputs is summed in registers over all inputs, in their
// order, one sum per number: what a row comes to depends neither on the rows beside it nor on how many threads there are.
#pragma once
#include "decoder.h"
#include "elements.h"

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

template <class E, int ROWS = TILE_ROWS>
inline void tile_of(int rows, const uint32_t *x, size_t stride, const uint32_t *panel, int steps, Ahead ahead,
                    float *out) {
  if constexpr (ROWS > 1)
    if (rows < ROWS) return tile_of<E, ROWS - 1>(rows, x, stride, panel, steps, ahead, out);
  tile<E, ROWS>(x, stride, panel, steps, ahead, out);
}

// All rows of a range by all panels of a range. `take(row, panel, values)` gets [PANEL] outputs of one row, bias added.
template <class E, class Take>
inline void multiply_range(const Matrix &w, const uint32_t *x, size_t stride, Range rows, Range panels, Take &take) {
  alignas(64) float out[TILE_ROWS * PANEL];
  const int cached = CACHED_BYTES / (int)(stride * 4) / TILE_ROWS * TILE_ROWS;
  const int most = cached > TILE_ROWS ? cached : TILE_ROWS;
  for (int block = rows.first; block < rows.end; block += most) {
    const int end = block + most < rows.end ? block + most : rows.end;
    const int tiles = (end - block + TILE_ROWS - 1) / TILE_ROWS;
    for (int p = panels.first; p < panels.end; p++) {
      const uint32_t *panel = w.units.as<uint32_t>() + (size_t)p * w.steps * PANEL;
      int row = block;
      for (int t = 0; t < tiles; t++) {
        const int count = (end - row) / (tiles - t);  // as even as it goes
        tile_of<E>(count, x + row * stride, stride, panel, w.steps, Ahead{t * WAYS, tiles * WAYS}, out);
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
template <class E, class Take>
inline void multiply(const Member &member, const Matrix &w, const uint32_t *x, size_t stride, int rows, Take take) {
  const bool many = rows >= 4 * TILE_ROWS * member.count;
  const Range mine = many ? share(rows, member) : Range{0, rows};
  const Range panels = many ? Range{0, w.panels} : share(w.panels, member);
  multiply_range<E>(w, x, stride, mine, panels, take);
}

}  // namespace weir::WEIR_ISA
