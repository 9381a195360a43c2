// Helpers of the loops: splitting a flat range over threads, compile-time bools, and casts to the element type.
#pragma once

#include <cstdint>

#include "math/config.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace iaat {
inline namespace IAAT_ISA {

// Loops over fewer elements use one thread, since more would cost more than they save (torch's grain size).
constexpr int64_t kGrain = 32768;
// Maximum length of an inner loop: a multiple of every vector width, and small enough for 32-bit counters.
constexpr int64_t kTile = 4096;

// Splits the flat range [0, n) over the threads at multiples of a cache line and calls body(begin, end) in each.
template <typename Body>
void parallel_for(int64_t n, const Body& body) {
    const int64_t tiles = (n + 63) / 64;
#pragma omp parallel if (n > kGrain)
    {
        int64_t thread = 0, threads = 1;
#if defined(_OPENMP)
        thread = omp_get_thread_num();
        threads = omp_get_num_threads();
#endif
        const int64_t begin = tiles * thread / threads * 64, end = tiles * (thread + 1) / threads * 64;
        if (begin < n) body(begin, end < n ? end : n);
    }
}

template <bool kValue>
struct Bool {
    static constexpr bool value = kValue;
};

template <typename T>
const T* as(const void* pointer, T*) {
    return static_cast<const T*>(pointer);
}
template <typename T>
T* as(void* pointer, T*) {
    return static_cast<T*>(pointer);
}

}  // namespace IAAT_ISA
}  // namespace iaat
