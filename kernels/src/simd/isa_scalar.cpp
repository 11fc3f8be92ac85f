// The kernels for scalar. Compiled with the flags of that instruction set: nothing but plain data and
// functions of this namespace may be defined here, or the linker could keep this copy of a shared one for all machines.
#define EDGEMAMBA_ISA_NAMESPACE isa_scalar
#define EDGEMAMBA_ISA_NAME "scalar"
#include "vec_scalar.h"
//
#include "table.h"
