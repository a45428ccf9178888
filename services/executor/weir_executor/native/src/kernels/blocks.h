// Where a token's keys and values are inside its block, and how they get there.
#pragma once
#include "decoder.h"
#include "elements.h"

namespace weir::WEIR_ISA {

// One token's key and value of one head → its place in a tile.
template <class E>
WEIR_INLINE void put_key(typename E::Raw *tile, int token, const typename E::Raw *key, int head_dim) {
  for (int unit = 0; unit < head_dim / E::PER_UNIT; unit++)
    memcpy(tile + (unit * TILE + token) * E::PER_UNIT, key + unit * E::PER_UNIT, 4);
}
template <class E>
WEIR_INLINE void put_value(typename E::Raw *tile, int token, const typename E::Raw *value, int head_dim, int dims) {
  typename E::Raw *to = tile + token / E::PER_UNIT * dims * E::PER_UNIT + token % E::PER_UNIT;
  for (int d = 0; d < head_dim; d++) to[d * E::PER_UNIT] = value[d];
}

// A token of a block that is kept in tiles, or plainly.
template <class E>
WEIR_INLINE void put_token(const Decoder &d, uint32_t *piece, int offset, const typename E::Raw *key,
                           const typename E::Raw *value) {
  using Raw = typename E::Raw;
  const int head_dim = d.shape.head_dim;
  if (d.blocks.tiled) {
    const int tile = offset / TILE, tiles = d.shape.block_size / TILE;
    put_key<E>((Raw *)(piece + tile * d.blocks.key_tile), offset % TILE, key, head_dim);
    put_value<E>((Raw *)(piece + tiles * d.blocks.key_tile + tile * d.blocks.value_tile), offset % TILE, value, head_dim,
                 d.dims);
  } else {
    Raw *keys = (Raw *)piece, *values = keys + d.shape.block_size * head_dim;
    memcpy(keys + offset * head_dim, key, head_dim * sizeof(Raw));
    memcpy(values + offset * head_dim, value, head_dim * sizeof(Raw));
  }
}

// One head's blocks of one sequence.
struct Source {
  int layer, kv_head;
  const int32_t *table;
};

// The tiles of one chunk of a sequence, in place or built in `room`.
struct Tiles {
  const uint32_t *keys[CHUNK / TILE], *values[CHUNK / TILE];
};

template <class E>
inline void build_tile(const Decoder &d, const Source &source, int first, int end, uint32_t *keys, uint32_t *values) {
  using Raw = typename E::Raw;
  const int size = d.shape.block_size, head_dim = d.shape.head_dim;
  for (int token = first; token < end; token++) {
    const Raw *piece = (const Raw *)d.piece(source.layer, source.table[token / size], source.kv_head);
    const Raw *plain = piece + token % size * head_dim;
    put_key<E>((Raw *)keys, token - first, plain, head_dim);
    put_value<E>((Raw *)values, token - first, plain + size * head_dim, head_dim, d.dims);
  }
}

// Of the tokens from `start`, which begins a chunk, to `end`.
template <class E>
inline void find_tiles(const Decoder &d, const Source &source, int start, int end, uint32_t *room, Tiles &tiles) {
  const int size = d.shape.block_size;
  for (int t = 0; start + t * TILE < end; t++) {
    const int first = start + t * TILE;
    if (d.blocks.tiled) {
      const uint32_t *piece = d.piece(source.layer, source.table[first / size], source.kv_head);
      const int tile = first % size / TILE;
      tiles.keys[t] = piece + tile * d.blocks.key_tile;
      tiles.values[t] = piece + size / TILE * d.blocks.key_tile + tile * d.blocks.value_tile;
    } else {
      uint32_t *keys = room + t * (d.blocks.key_tile + d.blocks.value_tile), *values = keys + d.blocks.key_tile;
      memset(keys, 0, (d.blocks.key_tile + d.blocks.value_tile) * sizeof(uint32_t));
      build_tile<E>(d, source, first, first + TILE < end ? first + TILE : end, keys, values);
      tiles.keys[t] = keys, tiles.values[t] = values;
    }
  }
}

}  // namespace weir::WEIR_ISA
