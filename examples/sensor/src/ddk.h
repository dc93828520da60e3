// The mingw-w64 DDK headers, made usable from more than one C file.
#pragma once

// intrin.h declares the two bit-test intrinsics extern; wdm.h then defines them again "static
// inline", which C makes external definitions, one per object file. Under another name the second
// pair stays static.
#include <intrin.h>
#define InterlockedBitTestAndSet   WdmInterlockedBitTestAndSet
#define InterlockedBitTestAndReset WdmInterlockedBitTestAndReset
#include <ntifs.h>
#undef InterlockedBitTestAndSet
#undef InterlockedBitTestAndReset
