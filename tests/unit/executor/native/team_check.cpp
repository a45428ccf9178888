// Members that are stopped in the middle of items: every item is given once, and what parts make of one another's results
// is what one member alone makes of them. Prints how many items were done over.
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "team.h"

using namespace weir;

constexpr int MEMBERS = 3, PARTS = 400, ITEMS = 17, SLOW_EVERY = 20;

static void require(bool held, const char *what, int part, int item) {
  if (held) return;
  fprintf(stderr, "%s: part %d, item %d\n", what, part, item);
  exit(1);
}

static uint64_t mixed(uint64_t x, int part, int item) { return (x ^ (uint64_t)(part * ITEMS + item)) * 0x9e3779b97f4a7c15; }

int main() {
  Team team(MEMBERS, 2 * PARTS);
  static std::atomic<int> begun[PARTS][ITEMS], given[PARTS][ITEMS];
  static uint64_t made[PARTS][ITEMS], sums[PARTS][ITEMS];
  for (int step = 0; step < 2; step++) {
    for (auto &part : begun) for (auto &item : part) item = 0;
    for (auto &part : given) for (auto &item : part) item = 0;
    team.run([](Member &member) {
      uint64_t room = 0;
      for (int part = 0; part < PARTS; part++) {
        member.each(
            ITEMS,
            [&](int item) {
              const bool first = begun[part][item]++ == 0;
              const uint64_t before = part ? sums[part - 1][(item + 1) % ITEMS] : 1;
              room = mixed(before, part, item);
              // Whoever begins this one loses its core in the middle of it.
              if (first && (part + item) % SLOW_EVERY == 0) std::this_thread::sleep_for(std::chrono::microseconds(500));
            },
            [&](int item) { made[part][item] = room, given[part][item]++; });
        member.each_of(ITEMS, [&](int item) { sums[part][item] = made[part][item] + made[part][0]; });
      }
    });
    uint64_t alone[ITEMS], next[ITEMS];
    for (int part = 0; part < PARTS; part++) {
      for (int item = 0; item < ITEMS; item++) next[item] = mixed(part ? alone[(item + 1) % ITEMS] : 1, part, item);
      for (int item = 0; item < ITEMS; item++) {
        alone[item] = next[item] + next[0];
        require(given[part][item] == 1, "not given once", part, item);
        require(sums[part][item] == alone[item], "another result", part, item);
      }
    }
  }
  int overtaken = 0;
  for (auto &part : begun) for (auto &item : part) overtaken += item > 1;
  printf("%d\n", overtaken);
}
