// Queries against blocks, chunk by chunk of CHUNK tokens with a running softmax (Milakov & Gimelshein, arXiv 1805.02867;
// Dao et al., arXiv 2205.14135). Blocks that several rows begin with are read once for all of them.
//
// A query row is one head of one token. Its state lives in memory between chunks, so that the rows that go through a
// chunk together need not be the same from chunk to chunk.
#pragma once
#include "blocks.h"
#include "multiply.h"

namespace weir::WEIR_ISA {

constexpr int QUERY_ROWS = REGISTERS == 32 ? 6 : 2;  // with four vectors of sums each
constexpr int VECTORS = 4;
constexpr int TILES_AT_ONCE = VECTORS * LANES / TILE;  // of keys
constexpr float NOTHING_YET = -1e30f;

// One member's room for the group that it attends.
struct AttentionRoom {
  float *scores;      // [QUERY_ROWS][CHUNK]
  uint32_t *weights;  // [QUERY_ROWS][CHUNK / per unit] units
  uint32_t *tiles;    // built ones
  float *highest, *total;  // [query rows] so far
  float *found;            // [query rows][dims] so far, not yet divided by the total
};

// The rows of one tile and what they see: row r the tokens from first[r] to end[r] (exclusive).
struct Queries {
  const uint32_t *units;  // [rows][dims / per unit]
  const int *first, *end;
  float *highest, *total, *found;
};

template <class E, int ROWS>
WEIR_INLINE void score(const Decoder &d, const Queries &q, const Tiles &tiles, int count, float *scores) {
  const int units = d.shape.head_dim / E::PER_UNIT, stride = d.dims / E::PER_UNIT;
  for (int t = 0; t < count; t += TILES_AT_ONCE) {
    const uint32_t *keys[VECTORS];
    for (int v = 0; v < VECTORS; v++) {
      const int which = t + v * LANES / TILE;
      keys[v] = tiles.keys[which < count ? which : t] + v * LANES % TILE;  // past the end: any, and unused
    }
    Floats sums[ROWS][VECTORS] = {};
    for (int k = 0; k < units; k++) {
      typename E::Weights w[VECTORS];
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++) w[v] = E::weights(keys[v] + k * TILE);
#pragma GCC unroll 6
      for (int r = 0; r < ROWS; r++) {
        const auto a = E::activation(q.units + r * stride + k);
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) sums[r][v] = E::add_product(sums[r][v], w[v], a);
      }
    }
    for (int r = 0; r < ROWS; r++)
      for (int v = 0; v < VECTORS; v++) store(scores + r * CHUNK + t * TILE + v * LANES, sums[r][v]);
  }
}

// Scores of one row → weights, and what that does to its state. The row sees the places from `first` to `end`. A score
// that is no number makes the total none.
template <class E, bool SEES_ALL>
inline void soften(const Decoder &d, float *scores, typename E::Raw *weights, int width, int first, int end,
                        float &highest_yet, float &total, float *found) {
  Ints places;
  for (int i = 0; i < LANES; i++) places[i] = i;
  Floats top = all(NOTHING_YET);
  for (int i = 0; i < width; i += LANES) {
    Floats s = floats(scores + i);
    if constexpr (!SEES_ALL) s = choose((places + i >= first) & (places + i < end), s, all(NOTHING_YET));
    top = largest(top, s);
  }
  const float above = highest(top) > highest_yet ? highest(top) : highest_yet;
  Floats added{};
  for (int i = 0; i < width; i += LANES) {
    Floats weight = exp2(floats(scores + i) - all(above));
    if constexpr (!SEES_ALL) weight = choose((places + i >= first) & (places + i < end), weight, Floats{});
    added += weight;
    E::put(weights + i, weight);
  }
  if (above == highest_yet) {
    total += sum(added);
    return;
  }
  const float kept = exp2(all(highest_yet - above))[0];
  total = total * kept + sum(added);
  highest_yet = above;
  for (int i = 0; i < d.dims; i += LANES) store(found + i, floats(found + i) * all(kept));
}

template <class E, int ROWS, int V>
WEIR_INLINE void gather_values(const Decoder &d, const uint32_t *weights, const Tiles &tiles, int count, int dim,
                               float *found) {
  Floats sums[ROWS][V];
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < V; v++) sums[r][v] = floats(found + r * d.dims + dim + v * LANES);
  for (int t = 0; t < count; t++)
    for (int k = 0; k < TILE / E::PER_UNIT; k++) {
      typename E::Weights w[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) w[v] = E::weights(tiles.values[t] + k * d.dims + dim + v * LANES);
#pragma GCC unroll 6
      for (int r = 0; r < ROWS; r++) {
        const auto a = E::activation(weights + (r * CHUNK + t * TILE) / E::PER_UNIT + k);
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) sums[r][v] = E::add_product(sums[r][v], w[v], a);
      }
    }
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < V; v++) store(found + r * d.dims + dim + v * LANES, sums[r][v]);
}

// [ROWS] query rows through the tokens from `start` on, as many as `width`, of their common chunk.
template <class E, int ROWS>
inline void attend_chunk(const Decoder &d, const Queries &q, const Tiles &tiles, int start, int width,
                         AttentionRoom &room) {
  const int count = (width + TILE - 1) / TILE;
  score<E, ROWS>(d, q, tiles, count, room.scores);
  for (int r = 0; r < ROWS; r++) {
    const int first = q.first[r] - start, end = q.end[r] - start;
    auto *weights = (typename E::Raw *)(room.weights + r * CHUNK / E::PER_UNIT);
    const auto soften_row = first <= 0 && end >= count * TILE ? soften<E, true> : soften<E, false>;
    soften_row(d, room.scores + r * CHUNK, weights, count * TILE, first, end, q.highest[r], q.total[r],
               q.found + r * d.dims);
  }
  int dim = 0;
  for (; dim + VECTORS * LANES <= d.dims; dim += VECTORS * LANES)
    gather_values<E, ROWS, VECTORS>(d, room.weights, tiles, count, dim, q.found);
  for (; dim < d.dims; dim += LANES)
    gather_values<E, ROWS, 1>(d, room.weights, tiles, count, dim, q.found);
}

template <class E, int ROWS = QUERY_ROWS>
inline void attend_chunk_of(int rows, const Decoder &d, const Queries &q, const Tiles &tiles, int start, int width,
                            AttentionRoom &room) {
  if constexpr (ROWS > 1)
    if (rows < ROWS) return attend_chunk_of<E, ROWS - 1>(rows, d, q, tiles, start, width, room);
  attend_chunk<E, ROWS>(d, q, tiles, start, width, room);
}

// Several query rows, as even tiles of them, through the chunks [from, to) of a sequence.
template <class E>
inline void attend_chunks(const Decoder &d, const Source &source, const Queries &rows, int count, int from, int to,
                          AttentionRoom &room) {
  const int tiles_of_rows = (count + QUERY_ROWS - 1) / QUERY_ROWS, stride = d.dims / E::PER_UNIT;
  int oldest = rows.first[0], newest = rows.end[0];
  for (int r = 1; r < count; r++) {
    oldest = rows.first[r] < oldest ? rows.first[r] : oldest;
    newest = rows.end[r] > newest ? rows.end[r] : newest;
  }
  for (int chunk = from > oldest / CHUNK ? from : oldest / CHUNK; chunk < to && chunk * CHUNK < newest; chunk++) {
    const int start = chunk * CHUNK, end = start + CHUNK < newest ? start + CHUNK : newest;
    Tiles tiles;
    find_tiles<E>(d, source, start, end, room.tiles, tiles);
    for (int t = 0, row = 0; t < tiles_of_rows; t++) {
      const int some = (count - row) / (tiles_of_rows - t);
      const Queries q = {rows.units + row * stride, rows.first + row, rows.end + row,
                         rows.highest + row,        rows.total + row, rows.found + row * d.dims};
      int seen = q.end[0];
      for (int r = 1; r < some; r++) seen = q.end[r] > seen ? q.end[r] : seen;
      const int width = (seen < end ? seen : end) - start;
      if (width > 0) attend_chunk_of<E>(some, d, q, tiles, start, width, room);
      row += some;
    }
  }
}

}  // namespace weir::WEIR_ISA
