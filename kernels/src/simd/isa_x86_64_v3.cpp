// The kernels for x86-64-v3. Compiled with the flags of that instruction set: nothing but plain data and
// functions of this namespace may be defined here, or the linker could keep this copy of a shared one for all machines.
#define EDGEMAMBA_ISA_NAMESPACE isa_x86_64_v3
#define EDGEMAMBA_ISA_NAME "x86-64-v3"
#include "vec_avx2.h"
//
#include "table.h"
