// Helpers of elementwise kernels: grid-stride loops over 16-byte vectors of a flat tensor, and the row of each vector.
#pragma once

#include <initializer_list>

#include "cuda/device.h"
#include "cuda/vector.cuh"
#include "types.h"

namespace iaat {
namespace cuda {

constexpr int kThreads = 256;
// Blocks resident on an SM (streaming multiprocessor), enough to saturate its memory bandwidth: the second argument of
// __launch_bounds__. It limits a thread to 40 registers.
constexpr int kMinBlocksPerSM = 6;
// Maximum number of blocks in a grid, per SM; the grid-stride loop covers the rest of the tensor. It is several times
// the number of resident blocks, to balance the load, but small, because each block makes up to two atomic additions
// for the statistics.
constexpr int kMaxBlocksPerSM = 32;

// Division of 0 <= n < 2^63 by a divisor known before the launch, as a multiplication (Granlund and Montgomery 1994,
// figure 4.1). With shift = ceil(log2(divisor)), multiplier is floor(2^64 (2^shift - divisor) / divisor) + 1.
struct FastDivmod {
    int64_t divisor;
    uint64_t multiplier;
    int shift;

    explicit FastDivmod(int64_t by) : divisor(by), multiplier(0), shift(0) {
        while ((uint64_t(1) << shift) < uint64_t(by)) ++shift;
        const unsigned __int128 excess = (uint64_t(1) << shift) - uint64_t(by);
        multiplier = uint64_t((excess << 64) / uint64_t(by)) + 1;
    }
    IAAT_DEVICE int64_t quotient(int64_t n) const {
        return int64_t((__umul64hi(uint64_t(n), multiplier) + uint64_t(n)) >> shift);
    }
};

// The shape of a batch x of `elements` elements, and of x_adv: `candidates` consecutive batches of that size.
struct Images {
    int64_t elements, samples, candidates;
    FastDivmod row_elems;

    explicit Images(const Rows& size)
        : elements(size.samples * size.row_elems),
          samples(size.samples),
          candidates(size.rows / size.samples),
          row_elems(size.row_elems) {}

    // Whether vectors of `width` elements can be used: every candidate begins at a multiple of `width`, and no vector
    // touches three rows.
    bool fits(int width) const { return row_elems.divisor >= width && (candidates == 1 || elements % width == 0); }
};

// Where a vector lies in x: its first element, the row of that element, and how many of the vector's elements (`left`)
// belong to this row; the others belong to the next one.
struct VectorPosition {
    int64_t at, row;
    int left;
};

template <int kWidth>
IAAT_DEVICE VectorPosition vector_position(const Images& images, int64_t vector) {
    const int64_t at = vector * kWidth, row = images.row_elems.quotient(at);
    const int64_t left = (row + 1) * images.row_elems.divisor - at;
    return {at, row, left < kWidth ? int(left) : kWidth};
}

// The values of a quantity with one value per row, such as the radius, for the one or two rows of a vector. Both are
// always read, so that no load waits for the other.
template <typename A>
struct RowValues {
    A first, next;
    IAAT_DEVICE A at(int lane, int left) const { return lane == 0 || lane < left ? first : next; }
};

template <int kWidth, typename A>
IAAT_DEVICE RowValues<A> row_values(const A* values, int64_t row, int left) {
    return {values[row], values[row + (left < kWidth)]};
}

// The grid-stride loop: calls body(vector) for this thread's share of the vectors [0, vectors).
template <typename Body>
IAAT_DEVICE void grid_stride(int64_t vectors, const Body& body) {
    const int64_t threads = int64_t(gridDim.x) * kThreads;
    for (int64_t vector = int64_t(blockIdx.x) * kThreads + threadIdx.x; vector < vectors; vector += threads)
        body(vector);
}

// Calls body(element) for the elements after the last full vector, one thread of the first block for each.
template <int kWidth, typename Body>
IAAT_DEVICE void tail(int64_t elements, const Body& body) {
    const int64_t element = elements / kWidth * kWidth + threadIdx.x;
    if (kWidth > 1 && blockIdx.x == 0 && element < elements) body(element);
}

// The number of blocks in the grid for so many vectors.
inline unsigned grid_size(const Launcher& launcher, int64_t vectors) {
    const int64_t all = (vectors + kThreads - 1) / kThreads;
    const int64_t most = int64_t(kMaxBlocksPerSM) * launcher.sm_count();
    return unsigned(all < 1 ? 1 : all < most ? all : most);
}

}  // namespace cuda
}  // namespace iaat
