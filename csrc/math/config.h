// Shared by every scalar function: where it may run, and which build of it this is.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define IAAT_HD __host__ __device__ __forceinline__
#else
#define IAAT_HD inline
#endif

// csrc/cpu/kernels.cpp is compiled once per instruction set. Inline functions must not be shared between those
// builds: the linker keeps one copy, and an AVX-512 copy would crash an older processor. Hence a namespace each.
#if !defined(IAAT_ISA)
#define IAAT_ISA generic
#endif
