// What Python calls, by plain C names. An error is a null or a nonzero; nothing is thrown across.
#include <new>

#include "../isa.h"
#include "decoder.h"

namespace weir {

#define WEIR_DECLARE(isa) extern const Kernels isa##_kernels;
#define WEIR_ADDRESS(isa) &isa##_kernels,
WEIR_EACH_ISA(WEIR_DECLARE)

static const Kernels *find_kernels(const char *isa) { return find_part<Kernels>({WEIR_EACH_ISA(WEIR_ADDRESS)}, isa); }

struct Handle {
  const Kernels *kernels;
  Decoder decoder;
};

}  // namespace weir

WEIR_API const char *weir_isa(const char *isa) {
  const weir::Kernels *kernels = weir::find_kernels(isa);
  return kernels ? kernels->name : nullptr;
}

WEIR_API void *weir_open(const weir::Shape *shape, const char *isa) {
  const weir::Kernels *kernels = weir::find_kernels(isa);
  if (!kernels) return nullptr;
  try {
    return new weir::Handle{kernels, weir::Decoder(*shape)};
  } catch (const std::bad_alloc &) {
    return nullptr;
  }
}

WEIR_API int weir_load_layer(weir::Handle *handle, const weir::LayerTensors *tensors) {
  try {
    weir::load_layer(handle->decoder, *tensors);
    return 0;
  } catch (const std::bad_alloc &) {
    return 1;
  }
}

WEIR_API int weir_load_ends(weir::Handle *handle, const weir::EndTensors *tensors) {
  try {
    weir::load_ends(handle->decoder, *tensors);
    return 0;
  } catch (const std::bad_alloc &) {
    return 1;
  }
}

WEIR_API int weir_step(weir::Handle *handle, const weir::Step *step) {
  try {
    weir::plan(handle->decoder, *step);
  } catch (const std::bad_alloc &) {
    return 1;
  }
  handle->decoder.team.run([&](weir::Member &member) { handle->kernels->step(handle->decoder, *step, member); });
  return 0;
}

WEIR_API void weir_read_block(weir::Handle *handle, int block, void *payload) {
  weir::read_block(handle->decoder, block, payload);
}

WEIR_API void weir_write_block(weir::Handle *handle, int block, const void *payload) {
  weir::write_block(handle->decoder, block, payload);
}

WEIR_API void weir_clear_block(weir::Handle *handle, int block) { weir::clear_block(handle->decoder, block); }

WEIR_API void weir_close(weir::Handle *handle) { delete handle; }
