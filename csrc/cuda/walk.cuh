// How threads walk over images: vectors of the flat tensor, each of which looks its row up once.
#pragma once

#include <initializer_list>

#include "cuda/device.h"
#include "cuda/vector.cuh"
#include "types.h"

namespace iaat {
namespace cuda {

constexpr int kThreads = 256;
// Vectors of a thread that are in flight together.
constexpr int kInFlight = 2;
// Blocks to a multiprocessor before threads take further turns: several times what fits, so that the last ones even
// the load out, and few enough for the statistics, which cost a block up to two atomic additions.
constexpr int kBlocksPerMultiprocessor = 32;

// Division of 0 <= n < 2^63 by a divisor known before the launch, as a multiplication (Granlund and Montgomery 1994,
// figure 4.1). With shift = ceil(log2(divisor)), multiplier is floor(2^64 (2^shift - divisor) / divisor) + 1.
struct Divider {
    int64_t divisor;
    uint64_t multiplier;
    int shift;

    explicit Divider(int64_t by) : divisor(by), multiplier(0), shift(0) {
        while ((uint64_t(1) << shift) < uint64_t(by)) ++shift;
        const unsigned __int128 excess = (uint64_t(1) << shift) - uint64_t(by);
        multiplier = uint64_t((excess << 64) / uint64_t(by)) + 1;
    }
    IAAT_DEVICE int64_t quotient(int64_t n) const {
        return int64_t((__umul64hi(uint64_t(n), multiplier) + uint64_t(n)) >> shift);
    }
};

// The batch x of `elements` elements, in rows, and `candidates` batches of that size behind one another.
struct Images {
    int64_t elements, samples, candidates;
    Divider row_elems;

    explicit Images(const Rows& size)
        : elements(size.samples * size.row_elems),
          samples(size.samples),
          candidates(size.rows / size.samples),
          row_elems(size.row_elems) {}

    // Whether vectors of `width` elements fit: every candidate begins at a multiple of one, and none touches three rows.
    bool fits(int width) const {
        return row_elems.divisor >= width && (candidates == 1 || elements % width == 0);
    }
};

// Where a vector lies in x: its first element, the row of that, and how many of its elements belong to this row; the
// others belong to the next.
struct Place {
    int64_t at, row, left;
};

IAAT_DEVICE Place place_of(const Images& images, int64_t at) {
    const int64_t row = images.row_elems.quotient(at);
    return {at, row, (row + 1) * images.row_elems.divisor - at};
}

// A vector's values of something that each row has one of.
template <typename A>
struct RowValues {
    A first, next;
    int64_t left;
    IAAT_DEVICE A operator[](int lane) const { return lane < left ? first : next; }
};

template <int kWidth, typename A>
IAAT_DEVICE RowValues<A> row_values(const A* values, int64_t row, int64_t left) {
    const A first = values[row];
    return {first, left < kWidth ? values[row + 1] : first, left};
}

// Calls body(first) for the vectors first, first + kThreads, ... of this thread, kInFlight of them at a time; those at
// `vectors` and beyond do not exist.
template <typename Body>
IAAT_DEVICE void for_my_vectors(int64_t vectors, const Body& body) {
    constexpr int64_t kBlock = int64_t(kThreads) * kInFlight;
    for (int64_t first = blockIdx.x * kBlock + threadIdx.x; first < vectors; first += gridDim.x * kBlock) body(first);
}

inline unsigned blocks_for(const Queue& queue, int64_t vectors) {
    const int64_t all = (vectors + kThreads * kInFlight - 1) / (kThreads * kInFlight);
    const int64_t most = int64_t(kBlocksPerMultiprocessor) * queue.multiprocessors();
    return unsigned(all < 1 ? 1 : all < most ? all : most);
}

}  // namespace cuda
}  // namespace iaat
