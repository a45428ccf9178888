// What Python calls, by plain C names. An error is a null or a nonzero; nothing is thrown across.
#include <cstring>
#include <new>

#include "decoder.h"

namespace weir {

#define WEIR_EACH_ISA(use) use(plain)
#if defined(__x86_64__)
#undef WEIR_EACH_ISA
#define WEIR_EACH_ISA(use) use(plain) use(avx2) use(avx512) use(avx512bf16)
#endif

#define WEIR_DECLARE(isa) extern const Kernels isa##_kernels;
WEIR_EACH_ISA(WEIR_DECLARE)

static bool runs_here(const char *isa) {
#if defined(__x86_64__)
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (!strcmp(isa, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (!strcmp(isa, "avx512")) return avx512;
  if (!strcmp(isa, "avx512bf16")) return avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
#endif
  return !strcmp(isa, "plain");
}

// The kernels of that name, if they run here; with no name the best that do.
static const Kernels *find_kernels(const char *isa) {
  const Kernels *found = nullptr;
#define WEIR_CONSIDER(one) \
  if (runs_here(#one) && (!*isa || !strcmp(isa, #one))) found = &one##_kernels;
  WEIR_EACH_ISA(WEIR_CONSIDER)
  return found;
}

struct Handle {
  const Kernels *kernels;
  Decoder decoder;
};

}  // namespace weir

#define WEIR_API extern "C" __attribute__((visibility("default")))

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
