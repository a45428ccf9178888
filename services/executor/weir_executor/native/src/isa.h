// A library's parts for the processor's family, one for each instruction set, and which of them runs here.
#pragma once
#include <cstring>
#include <initializer_list>

// The plainest first.
#if defined(__x86_64__)
#define WEIR_EACH_ISA(use) use(plain) use(avx2) use(avx512) use(avx512bf16)
#else
#define WEIR_EACH_ISA(use) use(plain)
#endif

#define WEIR_API extern "C" __attribute__((visibility("default")))

namespace weir {

inline bool runs_here(const char *isa) {
#if defined(__x86_64__)
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (!strcmp(isa, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (!strcmp(isa, "avx512")) return avx512;
  if (!strcmp(isa, "avx512bf16")) return avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
#endif
  return !strcmp(isa, "plain");
}

// The part of that name, if it runs here; with no name the best that does.
template <class Part>
const Part *find_part(std::initializer_list<const Part *> parts, const char *isa) {
  const Part *found = nullptr;
  for (const Part *part : parts)
    if (runs_here(part->name) && (!*isa || !strcmp(isa, part->name))) found = part;
  return found;
}

}  // namespace weir
