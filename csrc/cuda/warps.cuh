// Helpers of kernels with one warp per row of logits: the grid, and butterfly reductions over the lanes.
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
    return {int64_t(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarpSize, int(threadIdx.x % kWarpSize)};
}

inline unsigned warp_grid_size(int64_t rows) { return unsigned((rows + kWarpsPerBlock - 1) / kWarpsPerBlock); }

// The sum over the lanes of a warp, in every lane: a butterfly reduction, lanes half a warp apart first, then a
// quarter, and so on.
template <typename T>
IAAT_DEVICE T warp_sum(T value) {
#pragma unroll
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kFullMask, value, offset);
    return value;
}

template <typename T>
IAAT_DEVICE T warp_max(T value) {
#pragma unroll
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
        const T other = __shfl_xor_sync(kFullMask, value, offset);
        value = value < other ? other : value;
    }
    return value;
}

}  // namespace cuda
}  // namespace iaat
