// Chooses, once, the kernels for the widest instruction set that this processor supports.
#include <cstring>
#include <initializer_list>

#include "cpu/kernels.h"

namespace iaat {
namespace baseline {
extern const Kernels kernels;
}
#if defined(IAAT_HAVE_AVX2)
namespace avx2 {
extern const Kernels kernels;
}
#endif
#if defined(IAAT_HAVE_AVX512)
namespace avx512 {
extern const Kernels kernels;
}
#endif

const Kernels* kernels_named(const char* name) {
#if defined(IAAT_HAVE_AVX512)
    if (!strcmp(name, "avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return &avx512::kernels;
#endif
#if defined(IAAT_HAVE_AVX2)
    if (!strcmp(name, "avx2") && __builtin_cpu_supports("avx2")) return &avx2::kernels;
#endif
    return strcmp(name, "baseline") ? nullptr : &baseline::kernels;
}

const Kernels& best_kernels() {
    static const Kernels* const best = [] {
        for (const char* name : {"avx512", "avx2"})
            if (const Kernels* kernels = kernels_named(name)) return kernels;
        return kernels_named("baseline");
    }();
    return *best;
}

}  // namespace iaat
