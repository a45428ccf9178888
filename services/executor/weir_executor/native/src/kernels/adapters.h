// What adapters add to a product: y = W x + B (A x), for the tokens that have one (Hu et al., "LoRA", arXiv 2106.09685).
// A x is taken once per token, before the product; B of it is added where the product's outputs are at hand.
#pragma once
#include "decoder.h"
#include "elements.h"

namespace weir::WEIR_ISA {

enum Site { QKV, OUTPUT, GATE_UP, DOWN, SITES };

// The adapters of one site in a step.
class Adapted {
 public:
  Adapted(const Step &step, Room &room, int layer, Site site)
      : step_(step), lowered_(room.lowered.as<float>()), site_(layer * SITES + site) {}

  bool any() const { return step_.adapters; }

  // A x of one token.
  template <class E>
  void lower(int token, const typename E::Raw *x, int inputs) const {
    const Adapter *adapter = of(token);
    for (int r = 0; adapter && r < adapter->ranks[site_]; r++) {
      const float *down = adapter->down[site_] + (size_t)r * round_up(inputs, 16);
      Floats products{};
      for (int i = 0; i < inputs; i += LANES) products += E::get(x + i) * floats(down + i);
      lowered_[(size_t)token * step_.most_rank + r] = sum(products);
    }
  }

  // B (A x) of one token, for one panel of outputs.
  void add(int token, int panel, float *values) const {
    const Adapter *adapter = of(token);
    const int rank = adapter ? adapter->ranks[site_] : 0;
    const float *up = rank ? adapter->up[site_] + (size_t)panel * rank * PANEL : nullptr;
    for (int i = 0; rank && i < PANEL; i += LANES) {
      Floats sums = floats(values + i);
      for (int r = 0; r < rank; r++)
        sums += floats(up + r * PANEL + i) * all(lowered_[(size_t)token * step_.most_rank + r]);
      store(values + i, sums);
    }
  }

 private:
  const Step &step_;
  float *lowered_;
  const int site_;

  const Adapter *of(int token) const {
    return step_.token_adapters[token] < 0 ? nullptr : step_.adapters + step_.token_adapters[token];
  }
};

}  // namespace weir::WEIR_ISA
