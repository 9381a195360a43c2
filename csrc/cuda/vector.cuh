// Vectors of 16 bytes, the widest access of a thread, which is needed for full memory bandwidth.
#pragma once

#include <cstring>
#include <initializer_list>

#include "cuda/device.h"

namespace iaat {
namespace cuda {

constexpr int kVectorBytes = 16;

// `kWidth` consecutive elements: a full vector of 16 bytes, or one element if addresses or sizes do not allow more.
template <typename T, int kWidth>
struct Vector {
    T lane[kWidth];
};

template <typename T>
constexpr int kFullWidth = kVectorBytes / int(sizeof(T));

template <int kWidth, typename T>
IAAT_DEVICE Vector<T, kWidth> read_vector(const T* from) {
    Vector<T, kWidth> vector;
    if constexpr (kWidth == 1) {
        vector.lane[0] = *from;
    } else {
        static_assert(sizeof vector == kVectorBytes);
        const uint4 words = *reinterpret_cast<const uint4*>(from);
        memcpy(&vector, &words, sizeof vector);
    }
    return vector;
}

template <int kWidth, typename T>
IAAT_DEVICE void write_vector(T* to, const Vector<T, kWidth>& vector) {
    if constexpr (kWidth == 1) {
        *to = vector.lane[0];
    } else {
        uint4 words;
        memcpy(&words, &vector, sizeof words);
        *reinterpret_cast<uint4*>(to) = words;
    }
}

inline bool all_aligned(std::initializer_list<const void*> addresses) {
    for (const void* address : addresses)
        if (reinterpret_cast<uintptr_t>(address) % kVectorBytes) return false;
    return true;
}

}  // namespace cuda
}  // namespace iaat
