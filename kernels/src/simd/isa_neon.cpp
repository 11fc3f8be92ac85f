// The kernels for neon. Compiled with the flags of that instruction set: nothing but plain data and
// functions of this namespace may be defined here, or the linker could keep this copy of a shared one for all machines.
#define EDGEMAMBA_ISA_NAMESPACE isa_neon
#define EDGEMAMBA_ISA_NAME "neon"
#include "vec_neon.h"
//
#include "table.h"
