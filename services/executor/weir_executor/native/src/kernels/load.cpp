// Weights as PyTorch keeps them → panels.
#include <algorithm>
#include <cmath>
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

// One output's weights, in the matrix's own order of inputs.
struct Row {
  const Decoder &d;
  const void *weights;
  size_t first;

  float operator[](int input) const {
    if (d.shape.element == F32) return static_cast<const float *>(weights)[first + input];
    const uint32_t bits = (uint32_t)static_cast<const uint16_t *>(weights)[first + input] << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
  }
};

static int rounded(float weight, float scale, int least, int most) {
  return scale == 0.f ? 0 : std::clamp((int)std::lrint(weight / scale), least, most);
}

// The scale that brings the weights of one group nearest. Eight bits hold them nearly as they are; of four, cutting the
// largest a little often makes all others better (cf. Lin et al., "AWQ", arXiv 2306.00978, which searches likewise).
static float best_scale(const Row &row, int first, int end, int bits) {
  const int most = (1 << (bits - 1)) - 1, tries = bits == 8 ? 1 : 8;
  float largest = 0.f, best = 0.f, least_error = INFINITY;
  for (int i = first; i < end; i++) {
    if (!std::isfinite(row[i])) return NAN;  // what it gives is no number either
    largest = std::max(largest, std::fabs(row[i]));
  }
  for (int t = 0; t < tries; t++) {
    const float scale = largest / (float)most * (1.f - 0.05f * (float)t);
    float error = 0.f;
    for (int i = first; i < end && tries > 1; i++) {
      const float off = row[i] - scale * (float)rounded(row[i], scale, -most - 1, most);
      error += off * off;
    }
    if (error < least_error) best = scale, least_error = error;
  }
  return best;
}

static void pack_whole(const Row &row, Matrix &matrix, int panel, int column) {
  const int most = (1 << (matrix.bits - 1)) - 1, groups = matrix.steps * 2 / SCALED;
  char *to = matrix.units.as<char>() + panel * matrix.panel_bytes();
  float *scales = matrix.scales.as<float>() + (size_t)panel * groups * PANEL + column;
  for (int group = 0; group < groups; group++) {
    const int first = group * SCALED, end = std::min(first + SCALED, matrix.inputs);
    const float scale = scales[group * PANEL] = best_scale(row, first, end, matrix.bits);
    const auto whole = [&](int i) { return i < end && scale == scale ? rounded(row[i], scale, -most - 1, most) : 0; };
    for (int i = first; i < first + SCALED; i += 2) {
      const size_t place = (size_t)(i / 2) * PANEL + column;
      if (matrix.bits == 8)
        to[2 * place] = (char)whole(i), to[2 * place + 1] = (char)whole(i + 1);
      else
        to[place] = (char)((whole(i) + 8) | (whole(i + 1) + 8) << 4);
    }
  }
}

static void pack_units(const void *weights, size_t row, Matrix &matrix, int panel, int column) {
  const uint32_t *from = static_cast<const uint32_t *>(weights) + row * matrix.steps;
  uint32_t *to = matrix.units.as<uint32_t>() + (size_t)panel * matrix.steps * PANEL + column;
  for (int k = 0; k < matrix.steps; k++) memcpy(to + (size_t)k * PANEL, from + k, sizeof(uint32_t));
}

static void pack(Decoder &d, Matrix &matrix, const void *weights, int outputs, int inputs, const float *bias, int bits,
                 bool gated = false) {
  matrix.bits = bits, matrix.outputs = outputs, matrix.inputs = inputs;
  matrix.panels = gated ? round_up(outputs / 2, PANEL / 2) / (PANEL / 2) : round_up(outputs, PANEL) / PANEL;
  matrix.steps = bits ? round_up(inputs, SCALED) / 2 : inputs / d.per_unit;
  matrix.units = Memory(matrix.panels * matrix.panel_bytes());
  if (bits) matrix.scales = Memory((size_t)matrix.panels * matrix.steps * 2 / SCALED * PANEL * sizeof(float));
  if (bias) matrix.bias.assign(matrix.panels * PANEL, 0.f);
  d.team.run([&](Member &member) {
    for (int panel = member.index; panel < matrix.panels; panel += member.count)
      for (int column = 0; column < PANEL; column++) {
        const int row = source_row(panel, column, outputs, gated);
        if (row < 0) continue;
        if (bias) matrix.bias[panel * PANEL + column] = bias[row];
        if (bits)
          pack_whole({d, weights, (size_t)row * inputs}, matrix, panel, column);
        else
          pack_units(weights, row, matrix, panel, column);
      }
  });
}

void load_layer(Decoder &d, const LayerTensors &t) {
  const Shape &s = d.shape;
  const int wide = s.heads * s.head_dim, qkv = wide + 2 * s.kv_heads * s.head_dim, bits = s.weight_bits;
  Layer layer;
  pack(d, layer.qkv, t.qkv, qkv, s.hidden, t.qkv_bias, bits);
  pack(d, layer.output, t.output, s.hidden, wide, t.output_bias, bits);
  pack(d, layer.gate_up, t.gate_up, 2 * s.inner, s.hidden, t.gate_up_bias, bits, true);
  pack(d, layer.down, t.down, s.hidden, s.inner, t.down_bias, bits);
  layer.attention_norm = padded(t.attention_norm, s.hidden, d.hidden_stride);
  layer.mlp_norm = padded(t.mlp_norm, s.hidden, d.hidden_stride);
  layer.query_norm = padded(t.query_norm, s.head_dim, d.dims);
  layer.key_norm = padded(t.key_norm, s.head_dim, d.dims);
  layer.scale = t.scale, layer.window = t.window;
  d.layers.push_back(std::move(layer));
}

// Of the last projection eight bits at least: what it rounds no later layer evens out.
void load_ends(Decoder &d, const EndTensors &t) {
  const Shape &s = d.shape;
  pack(d, d.lm_head, t.lm_head, s.vocab, s.hidden, nullptr, s.weight_bits ? 8 : 0);
  const size_t row = (size_t)s.hidden * d.raw_bytes, stride = (size_t)d.hidden_stride * d.raw_bytes;
  d.embedding = Memory(s.vocab * stride);
  for (int id = 0; id < s.vocab; id++)
    memcpy(d.embedding.as<char>() + id * stride, static_cast<const char *>(t.embedding) + id * row, row);
  d.norm = padded(t.norm, s.hidden, d.hidden_stride);
  d.rope.assign(t.rope, t.rope + (size_t)s.positions * s.rope_dim);
}

}  // namespace weir
