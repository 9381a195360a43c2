// Macros for every scalar function: whether it also runs on a GPU, and the namespace of its instruction set.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define IAAT_HD __host__ __device__ __forceinline__
#else
#define IAAT_HD inline
#endif

// csrc/cpu/kernels.cpp is compiled once per instruction set. Those builds must not share inline functions, because the
// linker keeps only one copy, and an AVX-512 copy would crash an older processor. So each has its own namespace.
#if !defined(IAAT_ISA)
#define IAAT_ISA generic
#endif
