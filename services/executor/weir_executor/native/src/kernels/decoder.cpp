// Sizes, the plan of a step, and blocks as payloads.
#include "decoder.h"

#include <algorithm>
#include <cstring>
#include <iterator>

namespace weir {

// At most: fourteen parts of a layer, with adapters and whole numbers before each of four products, and six at the ends.
static int most_parts(const Shape &s) { return 16 * s.layers + 8; }

Decoder::Decoder(const Shape &s) : shape(s), team(s.threads, most_parts(s)) {
  per_unit = s.element == BF16 ? 2 : 1;
  raw_bytes = 4 / per_unit;
  hidden_stride = round_up(s.hidden, PANEL);
  inner_stride = round_up(s.inner, PANEL);
  qkv_stride = round_up((s.heads + 2 * s.kv_heads) * s.head_dim, PANEL);
  attended_stride = round_up(s.heads * s.head_dim, PANEL);
  dims = round_up(s.head_dim, TILE);
  whole_stride = round_up(std::max({s.hidden, s.inner, s.heads * s.head_dim}), SCALED);
  room.scratch.resize(s.threads);
  for (int member = 0; member < s.threads; member++) room.outputs.emplace_back(MOST_ITEM_ROWS * PANEL * sizeof(float));
  blocks.tiled = s.block_size % TILE == 0;
  blocks.key_tile = s.head_dim / per_unit * TILE;
  blocks.value_tile = TILE / per_unit * dims;
  const int plain = 2 * s.block_size * s.head_dim / per_unit;
  blocks.piece = blocks.tiled ? s.block_size / TILE * (blocks.key_tile + blocks.value_tile) : plain;
  blocks.head = blocks.piece * s.num_blocks;
  blocks.layer = blocks.head * s.kv_heads;
  blocks.units = Memory(blocks.layer * s.layers * sizeof(uint32_t));
  touch(blocks.units);
}

// Asks for every page now, each member for some: else the first steps that write to a page would wait for it, for
// milliseconds where a hypervisor has to find it too.
void Decoder::touch(const Memory &memory) {
  constexpr size_t SMALLEST_PAGE = 4096;
  team.run([&](Member &member) {
    for (size_t at = SMALLEST_PAGE * member.index; at < memory.bytes(); at += SMALLEST_PAGE * member.count)
      static_cast<volatile char *>(memory.as<char>())[at] = 0;
  });
}

static void grow(Decoder &d, const Step &step) {
  const Shape &s = d.shape;
  Room &room = d.room;
  const size_t raw = d.raw_bytes;
  if (step.tokens > room.tokens) {
    const size_t tokens = room.tokens = std::max(step.tokens, std::min(2 * room.tokens, 4096));
    room.residual = Memory(tokens * d.hidden_stride * sizeof(float));
    room.normed = Memory(tokens * d.hidden_stride * raw);
    room.qkv = Memory(tokens * d.qkv_stride * sizeof(float));
    room.queries = Memory(tokens * s.heads * d.dims * raw);
    room.attended = Memory(tokens * d.attended_stride * raw);
    room.gated = Memory(tokens * d.inner_stride * raw);
    if (s.weight_bits) {
      room.whole = Memory(tokens * d.whole_stride * sizeof(int16_t));
      room.whole_scales = Memory(tokens * sizeof(float));
    }
  }
  if (step.wanted > room.wanted) {
    const size_t wanted = room.wanted = step.wanted;
    room.last = Memory(wanted * d.hidden_stride * raw);
    room.best = Memory(wanted * s.threads * 3 * 16 * sizeof(float));  // three vectors of at most 16
  }
  const size_t lowered = (size_t)room.tokens * step.most_rank * sizeof(float);
  if (lowered > room.lowered.bytes()) room.lowered = Memory(lowered);
  if (!room.scratch[0].bytes()) {
    // Scores and weights of a tile of at most six rows; built tiles; and what the rows of a group have found.
    const size_t tiles = d.blocks.tiled ? 0 : CHUNK / TILE * (d.blocks.key_tile + d.blocks.value_tile);
    for (auto &scratch : room.scratch)
      scratch = Memory((2 * 6 * CHUNK + tiles + MOST_QUERY_ROWS * (d.dims + 2)) * sizeof(float));
  }
}

// How many leading chunks are the same blocks in both rows, and before the end of each.
static int shared_chunks(const Decoder &d, const Step &step, int one, int other) {
  const int size = d.shape.block_size;
  const int32_t *a = step.table + step.table_starts[one], *b = step.table + step.table_starts[other];
  const int tokens = std::min(step.row_positions[one], step.row_positions[other]);
  int blocks = 0;
  while ((blocks + 1) * size <= tokens && a[blocks] == b[blocks]) blocks++;
  return blocks * size / CHUNK;
}

static int64_t cost_of(const Step &step, const Group &g) {
  const int row = g.first_row;
  int64_t cost = 0;
  if (g.rows == 1) {
    const int last = step.row_positions[row] + g.first_token + g.tokens - step.row_starts[row];
    return (int64_t)g.tokens * (last + 64);
  }
  for (int r = row; r < row + g.rows; r++) cost += step.row_positions[r] + 64;
  return cost;
}

// Rows of one token that begin alike stand side by side; those that share a chunk or more form groups.
static int add_decodes(Decoder &d, const Step &step, int row) {
  const int most = d.group_tokens(24);
  Group g = {row, 1, step.row_starts[row], 1, 0, 0};
  int shared = CHUNK;  // far more than there are
  while (row + g.rows < step.rows && g.rows < most && step.row_starts[row + g.rows + 1] - step.row_starts[row + g.rows] == 1) {
    const int with_next = std::min(g.rows == 1 ? INT32_MAX : shared, shared_chunks(d, step, row, row + g.rows));
    if (!with_next || (g.rows > 1 && with_next < shared)) break;
    shared = with_next;
    g.rows++, g.tokens++;
  }
  g.shared_chunks = g.rows > 1 ? shared : 0;
  g.cost = cost_of(step, g);
  d.groups.push_back(g);
  return g.rows;
}

// A row's last token, for it tells whether the row is sound, and what the caller wants.
static void note_read(Decoder &d, const Step &step) {
  d.read_index.assign(step.tokens, -1);
  for (int row = 0; row < step.rows; row++) d.read_index[step.row_starts[row + 1] - 1] = 0;
  for (int i = 0; i < step.wanted; i++) d.read_index[step.wanted_places[i]] = 0;
  for (int i = 0; i < step.pooled; i++) d.read_index[step.pooled_places[i]] = 0;
  d.read.clear();
  for (int token = 0; token < step.tokens; token++) {
    if (d.read_index[token] < 0) continue;
    d.read_index[token] = (int)d.read.size();
    d.read.push_back(token);
  }
  d.read_groups.clear();
  std::copy_if(d.groups.begin(), d.groups.end(), std::back_inserter(d.read_groups), [&d](const Group &g) {
    const int *first = d.read_index.data() + g.first_token;
    return std::any_of(first, first + g.tokens, [](int index) { return index >= 0; });
  });
}

void plan(Decoder &d, const Step &step) {
  grow(d, step);
  d.groups.clear();
  const int most = d.group_tokens(96);
  for (int row = 0; row < step.rows;) {
    const int first = step.row_starts[row], end = step.row_starts[row + 1];
    if (end - first == 1) {
      row += add_decodes(d, step, row);
      continue;
    }
    for (int token = first; token < end; token += most) {
      Group g = {row, 1, token, std::min(most, end - token), 0, 0};
      g.cost = cost_of(step, g);
      d.groups.push_back(g);
    }
    row++;
  }
  std::stable_sort(d.groups.begin(), d.groups.end(), [](const Group &a, const Group &b) { return a.cost > b.cost; });
  note_read(d, step);
}

// ── payloads ───────────────────────────────────────────────────────────────────────────────────────────────────────────

// Calls `visit(in payload, in memory)` with the byte offsets of every run of elements that is whole in both.
template <class Visit>
static void each_run(const Decoder &d, int block, Visit visit) {
  const Shape &s = d.shape;
  const size_t raw = d.raw_bytes, head = (size_t)s.block_size * s.head_dim * raw;
  size_t in_payload = 0;
  for (int layer = 0; layer < s.layers; layer++)
    for (int part = 0; part < 2; part++)
      for (int kv_head = 0; kv_head < s.kv_heads; kv_head++, in_payload += head) {
        char *piece = reinterpret_cast<char *>(d.piece(layer, block, kv_head));
        if (!d.blocks.tiled) {
          visit(in_payload, piece + part * head, head);
          continue;
        }
        for (int token = 0; token < s.block_size; token++) {
          const int tile = token / TILE, place = token % TILE;
          char *keys = piece + (size_t)tile * d.blocks.key_tile * 4;
          char *values = piece + ((size_t)s.block_size / TILE * d.blocks.key_tile + (size_t)tile * d.blocks.value_tile) * 4;
          const size_t row = in_payload + (size_t)token * s.head_dim * raw;
          if (part == 0)
            for (int k = 0; k < s.head_dim / d.per_unit; k++) visit(row + k * 4, keys + (k * TILE + place) * 4, 4);
          else
            for (int i = 0; i < s.head_dim; i++)
              visit(row + i * raw, values + ((size_t)place / d.per_unit * d.dims + i) * 4 + place % d.per_unit * raw, raw);
        }
      }
}

void read_block(const Decoder &d, int block, void *payload) {
  each_run(d, block, [&](size_t at, const char *in_memory, size_t bytes) {
    memcpy(static_cast<char *>(payload) + at, in_memory, bytes);
  });
}

void write_block(Decoder &d, int block, const void *payload) {
  each_run(d, block, [&](size_t at, char *in_memory, size_t bytes) {
    memcpy(in_memory, static_cast<const char *>(payload) + at, bytes);
  });
}

void clear_block(Decoder &d, int block) {
  for (int layer = 0; layer < d.shape.layers; layer++)
    for (int kv_head = 0; kv_head < d.shape.kv_heads; kv_head++)
      memset(d.piece(layer, block, kv_head), 0, d.blocks.piece * sizeof(uint32_t));
}

}  // namespace weir
