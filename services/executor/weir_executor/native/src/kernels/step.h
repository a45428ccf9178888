// One step of a Llama-family model, as each member of the team runs it. A part begins when the one before it is done.
//
//   embed ─ [ norm ─ qkv ─ rotate, keep ─ attend ─ output + ─ norm ─ gate, up, silu ─ down + ] per layer ─ norm ─ logits
//
// The residual stream is float32; what is multiplied is of the model's element.
#pragma once
#include <algorithm>
#include <cmath>

#include "adapters.h"
#include "argmax.h"
#include "attention.h"

namespace weir::WEIR_ISA {

template <class E>
class StepWork {
  using Raw = typename E::Raw;

 public:
  StepWork(Decoder &decoder, const Step &step, Member &member)
      : d(decoder), step(step), member(member), room(decoder.room), tokens(step.tokens), carried(step.tokens) {}

  void run() {
    embed();
    for (int index = 0; index < d.shape.layers; index++) {
      const Layer &layer = d.layers[index];
      attention(index, layer);
      mlp(index, layer);
    }
    end();
  }

 private:
  Decoder &d;
  const Step &step;
  Member &member;
  Room &room;
  const int tokens;
  // Tokens that go on: all of them, and at last those that are read. They lie side by side in all rooms but the residual
  // stream's, the queries' and that of what adapters add.
  int carried;
  bool all_go_on = true;

  void narrow() { all_go_on = false, carried = (int)d.read.size(); }
  int token_at(int row) const { return all_go_on ? row : d.read[row]; }
  int row_of(int token) const { return all_go_on ? token : d.read_index[token]; }

  Adapted adapted(int layer, Site site) const { return {step, room, layer, site}; }
  float *outputs() const { return room.outputs[member.index].as<float>(); }
  float *residual(int token) const { return room.residual.as<float>() + (size_t)token * d.hidden_stride; }
  Raw *normed(int token) const { return room.normed.as<Raw>() + (size_t)token * d.hidden_stride; }
  float *qkv(int token) const { return room.qkv.as<float>() + (size_t)token * d.qkv_stride; }
  Raw *attended(int token) const { return room.attended.as<Raw>() + (size_t)token * d.attended_stride; }
  Raw *gated(int token) const { return room.gated.as<Raw>() + (size_t)token * d.inner_stride; }
  Raw *query(int kv_head, int token) const {
    return room.queries.as<Raw>() + ((size_t)kv_head * tokens + token) * d.group_heads() * d.dims;
  }

  // Rows of elements, `stride` apart, by a matrix, with what adapters add; see `multiply_range` for `take`.
  template <class Take>
  void product(const Matrix &matrix, const Memory &rows, int stride, int count, const Adapted &adapted, Take take) {
    if (!adapted.any()) return plain_product(matrix, rows, stride, count, take);
    member.each_of(count, [&](int row) {
      adapted.lower<E>(token_at(row), rows.as<Raw>() + (size_t)row * stride, matrix.inputs);
    });
    plain_product(matrix, rows, stride, count, [&](int row, int panel, float *values) {
      adapted.add(token_at(row), panel, values);
      take(row, panel, values);
    });
  }

  template <class Take>
  void plain_product(const Matrix &matrix, const Memory &rows, int stride, int count, Take take) {
    if (!matrix.bits) {
      const size_t units = stride / E::PER_UNIT;
      return multiply(member, PlainTiles<E>{matrix, rows.as<uint32_t>(), units}, count, outputs(), take);
    }
    float *scales = room.whole_scales.as<float>();
    member.each_of(count, [&](int row) {
      scales[row] = to_whole<E>(rows.as<Raw>() + (size_t)row * stride, matrix.inputs, 2 * matrix.steps,
                                room.whole.as<int16_t>() + (size_t)row * d.whole_stride);
    });
    const uint32_t *pairs = room.whole.as<uint32_t>();
    if (matrix.bits == 8)
      multiply(member, WholeTiles<Whole8>{matrix, pairs, (size_t)d.whole_stride / 2, scales}, count, outputs(), take);
    else
      multiply(member, WholeTiles<Whole4>{matrix, pairs, (size_t)d.whole_stride / 2, scales}, count, outputs(), take);
  }

  void embed() {
    const Raw *table = d.embedding.as<Raw>();
    member.each_of(tokens, [&](int token) {
      const Raw *from = table + (size_t)step.token_ids[token] * d.hidden_stride;
      for (int i = 0; i < d.hidden_stride; i += LANES) store(residual(token) + i, E::get(from + i));
    });
  }

  // RMSNorm (Zhang & Sennrich, arXiv 1910.07467) of `width` numbers; x and weight are filled up with zeros.
  template <class Put>
  static void rms_norm(const float *x, const float *weight, int width, float eps, Put put) {
    Floats squares{};
    for (int i = 0; i < width; i += LANES) squares += floats(x + i) * floats(x + i);
    const Floats factor = all(1.f / std::sqrt(sum(squares) / (float)width + eps));
    for (int i = 0; i < width; i += LANES) put(i, floats(x + i) * factor * floats(weight + i));
  }

  void norm_rows(const std::vector<float> &weight) {
    member.each_of(carried, [&](int row) { norm_row(token_at(row), weight.data(), normed(row)); });
  }

  void norm_row(int token, const float *weight, Raw *to) const {
    rms_norm(residual(token), weight, d.shape.hidden, d.shape.eps, [to](int i, Floats v) { E::put(to + i, v); });
  }

  void add_product(const Matrix &matrix, const Memory &rows, int stride, const Adapted &adapted) {
    product(matrix, rows, stride, carried, adapted, [this](int row, int panel, float *values) {
      float *to = residual(token_at(row)) + panel * PANEL;
      for (int i = 0; i < PANEL; i += LANES) store(to + i, floats(to + i) + floats(values + i));
    });
  }

  // ── attention ──────────────────────────────────────────────────────────────────────────────────────────────────────

  void attention(int index, const Layer &layer) {
    norm_rows(layer.attention_norm);
    product(layer.qkv, room.normed, d.hidden_stride, carried, adapted(index, QKV),
            [this](int row, int panel, float *values) {
                  memcpy(qkv(row) + panel * PANEL, values, PANEL * sizeof(float));
                });
    rotate_and_keep(index, layer);
    if (index + 1 == d.shape.layers) narrow();
    attend_all(index, layer);
    add_product(layer.output, room.attended, d.attended_stride, adapted(index, OUTPUT));
  }

  // Queries and keys are normed, where the model does that, and turned by their positions; keys and values go to the
  // blocks.
  void rotate_and_keep(int index, const Layer &layer) {
    member.each_of(tokens, [&](int token) {
      const int row = (int)(std::upper_bound(step.row_starts, step.row_starts + step.rows, token) - step.row_starts) - 1;
      const int position = step.row_positions[row] + token - step.row_starts[row];
      for (int head = 0; head < d.shape.heads; head++) {
        Raw *to = query(head / d.group_heads(), token) + head % d.group_heads() * d.dims;
        // exp2 is cheaper than exp: the logarithm's factor goes into the scale.
        turn(qkv(token) + head * d.shape.head_dim, layer.query_norm, position, layer.scale * 1.44269504f, to);
      }
      for (int head = 0; head < d.shape.kv_heads; head++) keep(index, layer, token, head, row, position);
    });
  }

  void keep(int index, const Layer &layer, int token, int kv_head, int row, int position) {
    const int dim = d.shape.head_dim;
    alignas(64) Raw key[MOST_DIMS], value[MOST_DIMS];
    const float *keys = qkv(token) + (d.shape.heads + kv_head) * dim, *values = keys + d.shape.kv_heads * dim;
    turn(keys, layer.key_norm, position, 1.f, key);
    put_head(values, value);
    const int block = step.table[step.table_starts[row] + position / d.shape.block_size];
    put_token<E>(d, d.piece(index, block, kv_head), position % d.shape.block_size, key, value);
  }

  // Norm, turn, scale. The first `rope_dim` dimensions turn, the first half of them with the second.
  void turn(const float *from, const std::vector<float> &norm, int position, float scale, Raw *to) const {
    const int dim = d.shape.head_dim, half = d.shape.rope_dim / 2;
    const float *cosines = &d.rope[(size_t)position * 2 * half], *sines = cosines + half;
    alignas(64) float x[MOST_DIMS];
    if (!norm.empty()) {
      memset(x, 0, d.dims * sizeof(float));
      memcpy(x, from, dim * sizeof(float));
      rms_norm(x, norm.data(), dim, d.shape.eps, [&x](int i, Floats v) { store(x + i, v); });
      from = x;
    }
    alignas(64) float y[MOST_DIMS];
    for (int i = 0; i < half; i++) {
      const float a = from[i], b = from[i + half];
      y[i] = (a * cosines[i] - b * sines[i]) * scale;
      y[i + half] = (b * cosines[i] + a * sines[i]) * scale;
    }
    for (int i = 2 * half; i < dim; i++) y[i] = from[i] * scale;
    put_head(y, to);
  }

  // The head's dimensions, filled up with zeros to whole vectors.
  void put_head(const float *from, Raw *to) const {
    const int dim = d.shape.head_dim;
    for (int i = 0; i + LANES <= dim; i += LANES) E::put(to + i, floats(from + i));
    if (dim % LANES == 0 && dim == d.dims) return;
    alignas(64) float x[LANES];
    for (int i = dim / LANES * LANES; i < d.dims; i += LANES) {
      for (int j = 0; j < LANES; j++) x[j] = i + j < dim ? from[i + j] : 0.f;
      E::put(to + i, floats(x));
    }
  }

  AttentionRoom attention_room(int query_rows) const {
    float *at = room.scratch[member.index].as<float>();
    AttentionRoom r;
    r.scores = at, at += QUERY_ROWS * CHUNK;
    r.weights = (uint32_t *)at, at += QUERY_ROWS * CHUNK;
    r.tiles = (uint32_t *)at, at += d.blocks.tiled ? 0 : CHUNK / TILE * (d.blocks.key_tile + d.blocks.value_tile);
    r.found = at, at += query_rows * d.dims;
    r.highest = at, at += query_rows;
    r.total = at;
    return r;
  }

  // Shared out by (group, KV head), the costly groups first.
  void attend_all(int index, const Layer &layer) {
    const int heads = d.shape.kv_heads;
    const std::vector<Group> &groups = all_go_on ? d.groups : d.read_groups;
    const auto group = [&](int item) -> const Group & { return groups[item / heads]; };
    member.each(
        (int)groups.size() * heads, [&](int item) { attend(index, layer, group(item), item % heads); },
        [&](int item) { give(group(item), item % heads); });
  }

  // One KV head's queries of one group.
  void attend(int index, const Layer &layer, const Group &group, int kv_head) {
    const int heads = d.group_heads(), rows = group.tokens * heads, stride = d.dims / E::PER_UNIT;
    AttentionRoom r = attention_room(rows);
    int first[MOST_QUERY_ROWS], end[MOST_QUERY_ROWS];
    for (int i = 0, row = group.first_row; i < group.tokens; i++) {
      const int token = group.first_token + i;
      while (token >= step.row_starts[row + 1]) row++;
      const int position = step.row_positions[row] + token - step.row_starts[row];
      for (int q = i * heads; q < (i + 1) * heads; q++) {
        end[q] = position + 1;
        first[q] = layer.window && end[q] > layer.window ? end[q] - layer.window : 0;
        r.highest[q] = NOTHING_YET, r.total[q] = 0.f;
      }
    }
    memset(r.found, 0, rows * d.dims * sizeof(float));
    const Queries all = {(const uint32_t *)query(kv_head, group.first_token), first, end, r.highest, r.total, r.found};
    Source source = {index, kv_head, step.table + step.table_starts[group.first_row]};
    attend_chunks<E>(d, source, all, rows, 0, group.shared_chunks, r);
    for (int i = 0, q = 0; i < group.rows; i++) {
      const int row = group.first_row + i, count = own_tokens(group, row) * heads;
      const Queries own = {all.units + q * stride, first + q,     end + q, r.highest + q,
                           r.total + q,            r.found + q * d.dims};
      source.table = step.table + step.table_starts[row];
      attend_chunks<E>(d, source, own, count, group.shared_chunks, d.shape.positions, r);
      q += count;
    }
  }

  // Tokens of a row inside the group: all of a decode's one, a part of a chunk's.
  int own_tokens(const Group &group, int row) const {
    return group.rows == 1 ? group.tokens : step.row_starts[row + 1] - step.row_starts[row];
  }

  void give(const Group &group, int kv_head) {
    const AttentionRoom r = attention_room(group.tokens * d.group_heads());
    const int heads = d.group_heads(), dim = d.shape.head_dim;
    alignas(64) Raw head[MOST_DIMS];
    for (int q = 0; q < group.tokens * heads; q++) {
      const int row = row_of(group.first_token + q / heads);
      if (row < 0) continue;
      const Floats factor = all(1.f / r.total[q]);
      for (int i = 0; i < d.dims; i += LANES) E::put(head + i, floats(r.found + q * d.dims + i) * factor);
      memcpy(attended(row) + (kv_head * heads + q % heads) * dim, head, dim * sizeof(Raw));
    }
  }

  // ── the rest ───────────────────────────────────────────────────────────────────────────────────────────────────────

  void mlp(int index, const Layer &layer) {
    norm_rows(layer.mlp_norm);
    product(layer.gate_up, room.normed, d.hidden_stride, carried, adapted(index, GATE_UP),
            [this](int row, int panel, float *values) {
                  Raw *to = gated(row) + panel * (PANEL / 2);
                  for (int i = 0; i < PANEL / 2; i += LANES)
                    E::put(to + i, silu(floats(values + i)) * floats(values + PANEL / 2 + i));
                });
    add_product(layer.down, room.gated, d.inner_stride, adapted(index, DOWN));
  }

  void end() {
    judge();
    member.each_of(step.wanted, [&](int i) {
      norm_row(step.wanted_places[i], d.norm.data(), room.last.as<Raw>() + (size_t)i * d.hidden_stride);
    });
    give_hidden();
    if (step.logits) write_logits();
    if (step.best) find_best();
  }

  // A sum is finite only if every term is.
  void judge() {
    member.each_of(step.rows, [&](int row) {
      const float *x = residual(step.row_starts[row + 1] - 1);
      Floats poison{};
      for (int i = 0; i < d.hidden_stride; i += LANES) poison += floats(x + i) * all(0.f);
      step.sound[row] = sum(poison) == 0.f;
    });
  }

  void give_hidden() {
    member.each_of(step.pooled, [&](int i) {
      float *to = step.hidden + (size_t)i * d.shape.hidden;
      rms_norm(residual(step.pooled_places[i]), d.norm.data(), d.shape.hidden, d.shape.eps, [this, to](int at, Floats v) {
        const int count = d.shape.hidden - at < LANES ? d.shape.hidden - at : LANES;
        memcpy(to + at, &v, count * sizeof(float));
      });
    });
  }

  template <class Take>
  void each_logits(Take take) {
    plain_product(d.lm_head, room.last, d.hidden_stride, step.wanted, take);
  }

  int width(int panel) const { return d.shape.vocab - panel * PANEL < PANEL ? d.shape.vocab - panel * PANEL : PANEL; }

  void write_logits() {
    each_logits([this](int row, int panel, float *values) {
      memcpy(step.logits + (size_t)row * d.shape.vocab + panel * PANEL, values, width(panel) * sizeof(float));
    });
  }

  void find_best() {
    Best *bests = room.best.as<Best>(), *mine = bests + (size_t)member.index * step.wanted;
    member.each_of(step.wanted * member.count, [&](int i) { begin(bests[i]); });
    each_logits([&](int row, int panel, float *values) {
      // What fills the last panel up repeats its first logit: of equals the lower id wins.
      for (int i = width(panel); i < PANEL; i++) values[i] = values[0];
      see(mine[row], panel, values);
    });
    if (member.index) return;
    for (int i = 0, row = 0; i < step.wanted; i++) {
      while (step.wanted_places[i] >= step.row_starts[row + 1]) row++;
      bool finite;
      step.best[i] = finish(bests + i, member.count, step.wanted, finite);
      if (!finite) step.sound[row] = 0;
    }
  }
};

inline void run_step(Decoder &decoder, const Step &step, Member &member) {
  if (decoder.shape.element == BF16)
    StepWork<Bf16>(decoder, step, member).run();
  else
    StepWork<F32>(decoder, step, member).run();
}

}  // namespace weir::WEIR_ISA
