// How threads walk over images: vectors of the flat tensor, each of which looks its row up once.
#pragma once

#include <initializer_list>

#include "cuda/device.h"
#include "cuda/vector.cuh"
#include "types.h"

namespace iaat {
namespace cuda {

constexpr int kThreads = 256;
// Blocks that a multiprocessor shall hold together, for its memory to be busy: 40 registers a thread are left to each.
constexpr int kBlocksAtOnce = 6;
// Blocks to a multiprocessor before threads take further turns: several times what it holds, so that the last ones even
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

    // Whether vectors of `width` elements fit: every candidate begins at a multiple of one, and none touches three
    // rows.
    bool fits(int width) const { return row_elems.divisor >= width && (candidates == 1 || elements % width == 0); }
};

// Where a vector lies in x: its first element, the row of that, and how many of its elements belong to this row; the
// others belong to the next.
struct Place {
    int64_t at, row;
    int left;
};

template <int kWidth>
IAAT_DEVICE Place place_of(const Images& images, int64_t vector) {
    const int64_t at = vector * kWidth, row = images.row_elems.quotient(at);
    const int64_t left = (row + 1) * images.row_elems.divisor - at;
    return {at, row, left < kWidth ? int(left) : kWidth};
}

// A vector's values of something that each row has one of. Both are read, be they the same, so that no thread waits for
// one of them before it has asked for the other.
template <typename A>
struct RowValues {
    A first, next;
    IAAT_DEVICE A at(int lane, int left) const { return lane == 0 || lane < left ? first : next; }
};

template <int kWidth, typename A>
IAAT_DEVICE RowValues<A> row_values(const A* values, int64_t row, int left) {
    return {values[row], values[row + (left < kWidth)]};
}

// Calls body(vector) for this thread's share of the vectors [0, vectors).
template <typename Body>
IAAT_DEVICE void for_my_vectors(int64_t vectors, const Body& body) {
    const int64_t threads = int64_t(gridDim.x) * kThreads;
    for (int64_t vector = int64_t(blockIdx.x) * kThreads + threadIdx.x; vector < vectors; vector += threads)
        body(vector);
}

// Calls body(element) for the elements behind the last full vector, by a thread each.
template <int kWidth, typename Body>
IAAT_DEVICE void for_the_rest(int64_t elements, const Body& body) {
    const int64_t element = elements / kWidth * kWidth + threadIdx.x;
    if (kWidth > 1 && blockIdx.x == 0 && element < elements) body(element);
}

inline unsigned blocks_for(const Queue& queue, int64_t vectors) {
    const int64_t all = (vectors + kThreads - 1) / kThreads;
    const int64_t most = int64_t(kBlocksPerMultiprocessor) * queue.multiprocessors();
    return unsigned(all < 1 ? 1 : all < most ? all : most);
}

}  // namespace cuda
}  // namespace iaat
