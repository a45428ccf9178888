// What the decoder keeps: packed weights, the blocks, and room for one step. Plain data; the kernels work on it.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "abi.h"
#include "memory.h"
#include "team.h"

namespace weir {

// Weights are packed in panels of so many outputs, side by side; the last panel is filled up with zeros.
constexpr int PANEL = 32;
// Keys and values are multiplied in tiles of so many tokens.
constexpr int TILE = 16;
// Attention goes over a sequence in chunks of so many tokens, counted from its first. Where they end is the same in
// every batch, so a token's numbers are, too.
constexpr int CHUNK = 256;

// Room on the stack: a head's dimensions; the query rows of a group.
constexpr int MOST_DIMS = 256;
constexpr int MOST_QUERY_ROWS = 128;

// Outputs of one item of a product, in the member's own room: rows of one panel each.
constexpr int MOST_ITEM_ROWS = 512;

inline int round_up(int n, int unit) { return (n + unit - 1) / unit * unit; }

// Where weights are whole numbers, so many inputs of an output have one scale. 64 products of 16 by 8 bits fit 32 bits.
constexpr int SCALED = 64;

// y = x Wᵀ + b, in panels. With `bits` 0 they are [panels][steps][PANEL] units: a unit holds the one or two weights of an
// output that one step multiplies. With 8 or 4 they are [panels][inputs / 2][PANEL] pairs of whole numbers, in two bytes or
// one (the first in its low half, both plus 8), and inputs are rounded up to whole SCALEDs.
struct Matrix {
  int bits = 0;
  int outputs = 0, inputs = 0, panels = 0, steps = 0;
  Memory units;
  Memory scales;            // float [panels][inputs / SCALED][PANEL]
  std::vector<float> bias;  // [panels * PANEL], or empty

  size_t panel_bytes() const { return (size_t)steps * PANEL * (bits ? bits / 4 : 4); }
  const char *panel(int p) const { return units.as<char>() + p * panel_bytes(); }
};

struct Layer {
  Matrix qkv, output, gate_up, down;  // gate_up: in every panel half gates, half ups
  std::vector<float> attention_norm, mlp_norm, query_norm, key_norm;  // filled up with zeros; empty where there is none
  float scale;
  int window;
};

// Keys and values: [layers][kv_heads][blocks] pieces. A piece holds one head's keys and values of a block. The blocks of a
// prompt are mostly consecutive, so attention mostly reads on and on, as the processor likes it. When tiles fit the block,
// keys and values are kept as attention multiplies them:
//
//   keys    [tiles][head_dim / per unit][TILE tokens] units
//   values  [tiles][TILE / per unit][dims] units, dims rounded up to whole vectors
//
// else plainly, [block_size][head_dim] twice, and attention builds the tiles anew.
struct Blocks {
  bool tiled;
  int key_tile, value_tile;   // units
  size_t piece, head, layer;  // units
  Memory units;
};

// Query tokens that are attended together: some of one row, or of several rows of one token each that begin with the
// same blocks.
struct Group {
  int first_row, rows;
  int first_token, tokens;
  int shared_chunks;  // leading chunks of which all rows have the same blocks
  int64_t cost;
};

// Room for one step, grown when a step needs more.
struct Room {
  int tokens = 0, wanted = 0;
  Memory residual;  // float [tokens][hidden], rows filled up to whole panels, as all of these
  Memory normed;    // element [tokens][hidden]
  Memory qkv;       // float [tokens][heads and kv heads twice, by head_dim]
  Memory queries;   // element [kv_heads][tokens][heads per kv head][dims]
  Memory attended;  // element [tokens][heads * head_dim]
  Memory gated;     // element [tokens][inner]
  Memory last;      // element [wanted][hidden]
  Memory whole;     // int16 [tokens][inputs], and each row's scale, where weights are whole numbers
  Memory whole_scales;
  Memory lowered;   // float [tokens][most_rank], where tokens have adapters
  Memory best;      // per member and wanted place: what `argmax.h` keeps
  std::vector<Memory> scratch;  // per member, for attention
  std::vector<Memory> outputs;  // per member: float, of one item of a product
};

struct Decoder {
  explicit Decoder(const Shape &shape);

  Shape shape;
  int per_unit, raw_bytes;          // elements in a unit; bytes of one
  int hidden_stride, inner_stride, qkv_stride, attended_stride, dims;  // elements; dims: head_dim in whole tiles
  int whole_stride;
  std::vector<Layer> layers;
  Matrix lm_head;
  Memory embedding;
  std::vector<float> norm, rope;
  Blocks blocks;
  Room room;
  Team team;

  std::vector<Group> groups;  // of the step at hand, the costly first

  // After the last layer's keys and values nobody reads what comes of a prompt's inner tokens: the tokens that are read,
  // ascending; which of them each token is, or -1; and the groups that have any.
  std::vector<int> read, read_index;
  std::vector<Group> read_groups;

  // Of a group, about so many query rows: enough to be worth a chunk's keys, few enough to share the work out evenly.
  int group_tokens(int query_rows) const { return group_heads() < query_rows ? query_rows / group_heads() : 1; }
  int group_heads() const { return shape.heads / shape.kv_heads; }
  void touch(const Memory &memory);
  uint32_t *piece(int layer, int block, int kv_head) const {
    return blocks.units.as<uint32_t>() + layer * blocks.layer + kv_head * blocks.head + block * blocks.piece;
  }
};

void load_layer(Decoder &decoder, const LayerTensors &tensors);
void load_ends(Decoder &decoder, const EndTensors &tensors);

// Before a step: room for it, and which tokens are attended together.
void plan(Decoder &decoder, const Step &step);

// A block's payload: [layers][keys, values][kv_heads][block_size][head_dim] elements.
void read_block(const Decoder &decoder, int block, void *payload);
void write_block(Decoder &decoder, int block, const void *payload);
void clear_block(Decoder &decoder, int block);

// What one instruction set's translation unit offers.
struct Kernels {
  const char *name;
  void (*step)(Decoder &, const Step &, Member &);
};

}  // namespace weir
