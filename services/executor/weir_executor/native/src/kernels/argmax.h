// The highest logit of each row, kept while the logits pass by: they are never written down.
#pragma once
#include "decoder.h"
#include "vectors.h"

namespace weir::WEIR_ISA {

// Of one row, per lane. A logit that is not finite makes `poison` not a number.
struct Best {
  float values[LANES];
  int32_t panels[LANES];  // the vector of logits that the value came from, counted over the whole row
  float poison[LANES];
};

WEIR_INLINE void begin(Best &best) {
  store(best.values, all(-__builtin_inff()));
  store(best.panels, Ints{});
  store(best.poison, Floats{});
}

// [PANEL] logits of panel number `panel`, in any order of panels; the lowest id among equals stays.
WEIR_INLINE void see(Best &best, int panel, const float *logits) {
  Floats values = floats(best.values), poison = floats(best.poison);
  Ints which = load<Ints>(best.panels);
  for (int i = 0; i < PANEL; i += LANES) {
    const Floats x = floats(logits + i);
    const Ints here = Ints{} + (panel * (PANEL / LANES) + i / LANES);
    const Ints better = (x > values) | ((x == values) & (here < which));
    values = better ? x : values;
    which = better ? here : which;
    poison += x * all(0.f);
  }
  store(best.values, values);
  store(best.panels, which);
  store(best.poison, poison);
}

// Over lanes and members. Returns the id; `finite` is whether all logits were.
inline int64_t finish(const Best *bests, int members, size_t stride, bool &finite) {
  float value = -__builtin_inff();
  int64_t id = 0;
  finite = true;
  for (int m = 0; m < members; m++) {
    const Best &best = bests[m * stride];
    for (int lane = 0; lane < LANES; lane++) {
      const int64_t candidate = (int64_t)best.panels[lane] * LANES + lane;
      if (best.values[lane] > value || (best.values[lane] == value && candidate < id))
        value = best.values[lane], id = candidate;
      finite = finite && best.poison[lane] == 0.f;
    }
  }
  return id;
}

}  // namespace weir::WEIR_ISA
