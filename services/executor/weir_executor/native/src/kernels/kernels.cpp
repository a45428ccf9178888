// One instruction set's kernels. The build compiles this file once per set, with WEIR_ISA naming it.
#include "step.h"

#define WEIR_NAME_OF(isa) #isa
#define WEIR_NAME(isa) WEIR_NAME_OF(isa)
#define WEIR_KERNELS_OF(isa) isa##_kernels
#define WEIR_KERNELS(isa) WEIR_KERNELS_OF(isa)

namespace weir {
extern const Kernels WEIR_KERNELS(WEIR_ISA);
const Kernels WEIR_KERNELS(WEIR_ISA) = {WEIR_NAME(WEIR_ISA), WEIR_ISA::run_step};
}  // namespace weir
