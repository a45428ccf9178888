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

// How rows by panels are cut into items: rows that stay cached while all panels pass by, one panel at a time; of few rows
// several panels, so that an item is worth its taking.
struct Cut {
  int rows, panels, blocks, columns;  // blocks of rows, columns of panels

  Cut(int rows, int panels, int cached, int members) : rows(rows), panels(panels) {
    blocks = (rows + cached - 1) / cached;
    const int most = MOST_ITEM_ROWS / ((rows + blocks - 1) / blocks), wanted = panels / (8 * members);
    const int width = blocks > 1 || wanted < 1 ? 1 : wanted < most ? wanted : most;
    columns = (panels + width - 1) / width;
  }
  int items() const { return blocks * columns; }
  Range item_rows(int item) const { return Member::part_of(rows, item / columns, blocks); }
  Range item_panels(int item) const { return Member::part_of(panels, item % columns, columns); }
};

// One item: [panels][rows][PANEL] outputs, bias added.
template <class Tiles>
inline void multiply_item(const Tiles &tiles, Range rows, Range panels, float *out) {
  constexpr int ROWS = Tiles::ROWS;
  const Matrix &w = tiles.w;
  const int parts = (rows.end - rows.first + ROWS - 1) / ROWS;
  for (int p = panels.first; p < panels.end; p++) {
    int row = rows.first;
    for (int t = 0; t < parts; t++) {
      const int count = (rows.end - row) / (parts - t);  // as even as it goes
      tiles.multiply(count, row, p, Ahead{t * WAYS, parts * WAYS}, out);
      for (int r = 0; r < count && !w.bias.empty(); r++)
        for (int i = 0; i < PANEL; i += LANES)
          store(out + r * PANEL + i, floats(out + r * PANEL + i) + floats(&w.bias[p * PANEL + i]));
      out += count * PANEL;
      row += count;
    }
  }
}

// `take(row, panel, values)` gets [PANEL] outputs of one row, once for each. `room` is the member's own.
template <class Tiles, class Take>
inline void multiply(Member &member, const Tiles &tiles, int rows, float *room, Take &take) {
  constexpr int ROWS = Tiles::ROWS;
  if (!rows) return member.each(0, [](int) {});
  const int in_cache = CACHED_BYTES / (int)(tiles.stride * 4), most = in_cache < MOST_ITEM_ROWS ? in_cache : MOST_ITEM_ROWS;
  const Cut cut(rows, tiles.w.panels, most > ROWS ? most / ROWS * ROWS : ROWS, member.count);
  member.each(
      cut.items(), [&](int item) { multiply_item(tiles, cut.item_rows(item), cut.item_panels(item), room); },
      [&](int item) {
        const Range rows = cut.item_rows(item), panels = cut.item_panels(item);
        float *values = room;
        for (int panel = panels.first; panel < panels.end; panel++)
          for (int row = rows.first; row < rows.end; row++, values += PANEL) take(row, panel, values);
      });
}

}  // namespace weir::WEIR_ISA
