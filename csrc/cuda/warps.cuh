// Kernels that give every row of logits a warp: the launch, and reductions over its lanes.
#pragma once

#include "cuda/device.h"

namespace iaat {
namespace cuda {

constexpr int kWarpsPerBlock = 4;

struct WarpRow {
    int64_t row;
    int lane;
};

IAAT_DEVICE WarpRow warp_row() {
    return {int64_t(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp, int(threadIdx.x % kWarp)};
}

inline unsigned blocks_of_warps(int64_t rows) { return unsigned((rows + kWarpsPerBlock - 1) / kWarpsPerBlock); }

// The sum over the lanes of a warp, in every lane: pairs half a warp apart first, then a quarter, and so on.
template <typename T>
IAAT_DEVICE T warp_sum(T value) {
#pragma unroll
    for (int apart = kWarp / 2; apart > 0; apart /= 2) value += __shfl_xor_sync(kFullWarp, value, apart);
    return value;
}

template <typename T>
IAAT_DEVICE T warp_max(T value) {
#pragma unroll
    for (int apart = kWarp / 2; apart > 0; apart /= 2) {
        const T other = __shfl_xor_sync(kFullWarp, value, apart);
        value = value < other ? other : value;
    }
    return value;
}

}  // namespace cuda
}  // namespace iaat
