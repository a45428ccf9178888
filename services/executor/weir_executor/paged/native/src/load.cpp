// Weights as PyTorch keeps them → panels.
#include <cstring>

#include "decoder.h"

namespace weir {

static std::vector<float> padded(const float *values, int count, int width) {
  if (!values) return {};
  std::vector<float> row(width, 0.f);
  memcpy(row.data(), values, count * sizeof(float));
  return row;
}

// Which of the matrix's rows stands in a panel's column, or -1. A gated matrix is [gates; ups]: each panel gets half of
// its columns from either, so that who has computed a gate has its up at hand.
static int source_row(int panel, int column, int outputs, bool gated) {
  if (!gated) return panel * PANEL + column < outputs ? panel * PANEL + column : -1;
  const int half = PANEL / 2, inner = outputs / 2, place = panel * half + column % half;
  return place >= inner ? -1 : column < half ? place : inner + place;
}

static void pack(Decoder &d, Matrix &matrix, const void *weights, int outputs, int inputs, const float *bias, bool gated) {
  const int inner = outputs / 2;
  matrix.outputs = outputs, matrix.inputs = inputs;
  matrix.panels = gated ? round_up(inner, PANEL / 2) / (PANEL / 2) : round_up(outputs, PANEL) / PANEL;
  matrix.steps = inputs / d.per_unit;
  matrix.units = Memory((size_t)matrix.panels * matrix.steps * PANEL * sizeof(uint32_t));
  if (bias) matrix.bias.assign(matrix.panels * PANEL, 0.f);
  uint32_t *units = matrix.units.as<uint32_t>();
  const uint32_t *from = static_cast<const uint32_t *>(weights);
  d.team.run([&](const Member &member) {
    for (int panel = member.index; panel < matrix.panels; panel += member.count)
      for (int column = 0; column < PANEL; column++) {
        const int row = source_row(panel, column, outputs, gated);
        if (row < 0) continue;
        if (bias) matrix.bias[panel * PANEL + column] = bias[row];
        uint32_t *to = units + (size_t)panel * matrix.steps * PANEL + column;
        for (int k = 0; k < matrix.steps; k++)
          memcpy(to + (size_t)k * PANEL, from + (size_t)row * matrix.steps + k, sizeof(uint32_t));
      }
  });
}

void load_layer(Decoder &d, const LayerTensors &t) {
  const Shape &s = d.shape;
  const int wide = s.heads * s.head_dim, qkv = wide + 2 * s.kv_heads * s.head_dim;
  Layer layer;
  pack(d, layer.qkv, t.qkv, qkv, s.hidden, t.qkv_bias, false);
  pack(d, layer.output, t.output, s.hidden, wide, t.output_bias, false);
  pack(d, layer.gate_up, t.gate_up, 2 * s.inner, s.hidden, t.gate_up_bias, true);
  pack(d, layer.down, t.down, s.hidden, s.inner, t.down_bias, false);
  layer.attention_norm = padded(t.attention_norm, s.hidden, d.hidden_stride);
  layer.mlp_norm = padded(t.mlp_norm, s.hidden, d.hidden_stride);
  layer.query_norm = padded(t.query_norm, s.head_dim, d.dims);
  layer.key_norm = padded(t.key_norm, s.head_dim, d.dims);
  layer.scale = t.scale, layer.window = t.window;
  d.layers.push_back(std::move(layer));
}

void load_ends(Decoder &d, const EndTensors &t) {
  const Shape &s = d.shape;
  pack(d, d.lm_head, t.lm_head, s.vocab, s.hidden, nullptr, false);
  const size_t row = (size_t)s.hidden * d.raw_bytes, stride = (size_t)d.hidden_stride * d.raw_bytes;
  d.embedding = Memory(s.vocab * stride);
  for (int id = 0; id < s.vocab; id++)
    memcpy(d.embedding.as<char>() + id * stride, static_cast<const char *>(t.embedding) + id * row, row);
  d.norm = padded(t.norm, s.hidden, d.hidden_stride);
  d.rope.assign(t.rope, t.rope + (size_t)s.positions * s.rope_dim);
}

}  // namespace weir
