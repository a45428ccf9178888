// What Python and the kernels tell each other: plain structs, mirrored field by field in paged/native/binding.py.
#pragma once
#include <cstdint>

namespace weir {

enum Element : int32_t { BF16 = 0, F32 = 1 };

// The model and the cache; constant for a decoder's life.
struct Shape {
  int32_t vocab, hidden, inner, layers;
  int32_t heads, kv_heads, head_dim, rope_dim;  // the first `rope_dim` dimensions of a head turn
  int32_t block_size, num_blocks, positions;    // tokens per block; blocks; rows of the rope table
  int32_t element;                              // of weights, activations and the cache
  int32_t weight_bits;                          // 0: weights are of the element, too; 8 or 4: whole numbers, rounded
  int32_t threads;
  float eps;
};

// One layer as PyTorch keeps it: matrices [out, in] in the shape's element, vectors in float32; null where there is none.
struct LayerTensors {
  const void *qkv, *output, *gate_up, *down;
  const float *qkv_bias, *output_bias, *gate_up_bias, *down_bias;
  const float *attention_norm, *mlp_norm, *query_norm, *key_norm;
  float scale;     // of attention scores
  int32_t window;  // newest tokens that a token sees, itself included; 0: all
};

struct EndTensors {
  const void *embedding, *lm_head;  // [vocab, hidden]; the same where they are tied
  const float *norm;
  const float *rope;  // [positions, 2, rope_dim / 2]: cosines, sines
};

// One adapter's matrices by site: four to a layer, in the order of LayerTensors. No rank: the adapter leaves the site alone.
struct Adapter {
  const float *const *down;  // [rank, inputs], rows filled up with zeros to whole 16s
  const float *const *up;    // [panels, rank, 32], as the site's weights are packed; the scale is in it
  const int32_t *ranks;
};

// One step: tokens of several rows side by side. A row is some consecutive tokens of one sequence.
struct Step {
  int32_t tokens, rows, wanted, pooled, most_rank;
  const int32_t *token_ids;      // [tokens]
  const int32_t *row_starts;     // [rows + 1]: each row's first token in this step, and the end of the last
  const int32_t *row_positions;  // [rows]: that token's position in its sequence
  const int32_t *table;          // block ids of all rows, one after the other
  const int32_t *table_starts;   // [rows + 1]
  const int32_t *wanted_places;  // [wanted], ascending: tokens whose logits are wanted
  const int32_t *pooled_places;  // [pooled]: tokens whose hidden states are wanted
  const int32_t *token_adapters;  // [tokens]: which of `adapters`, or -1
  const Adapter *adapters;        // null when no token has any
  float *logits;                 // [wanted, vocab], or null
  int64_t *best;                 // [wanted], or null: the highest logit's token, the lowest id among equals
  float *hidden;                 // [pooled, hidden], after the last norm
  uint8_t *sound;                // [rows]: what the row's last token came to is finite, and its logits if `best`
};

}  // namespace weir
